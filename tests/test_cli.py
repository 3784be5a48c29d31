"""The `lstmlm` command: what it lists, and that a command is the script of the same name."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lstmlm as package
from lstmlm import cli
from tests.helpers import ROOT

pytestmark = pytest.mark.system  # whole runs or processes


def lstmlm(*arguments: str, **ranks: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lstmlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | ranks)


def test_alone_it_lists_the_commands_on_one_screen() -> None:
    result = lstmlm()
    assert (result.returncode, result.stdout) == (0, f"{cli.overview()}\n"), result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert re.findall(r"^  lstmlm (\w+)", result.stdout, re.MULTILINE) == list(cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dance"], f"error: there is no command 'dance': name one of {', '.join(cli.COMMANDS)}\n"),
        (["train", "--train.epoch=3"], "--train.epoch"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], told: str) -> None:
    """Also of the first rank of a second host: it is not the main rank, and nobody else can say what is wrong there."""
    for ranks in ({}, {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}):
        result = lstmlm(*arguments, **ranks)
        assert (result.returncode, result.stdout) == (2, "")
        assert told in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_script_too(name: str) -> None:
    text = (ROOT / "scripts" / f"{name}.py").read_text()
    function = cli.COMMANDS[name].__name__
    assert f"main({function})" in text


def test_every_public_name_is_there_and_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    (shown,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in shown.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen, key=str) == sorted(package.__all__)
    for name, module in seen.items():
        assert getattr(package, str(name)) is getattr(importlib.import_module(str(module)), str(name))
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="module 'lstmlm' has no attribute 'tarin'"):
        package.tarin  # noqa: B018


WITHOUT_TORCH = """
import sys
from lstmlm.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv[1:] = line.split(" ")
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code
    print(status, {"torch", "accelerate", "datasets"} & sys.modules.keys(), line, file=sys.stderr)
"""


def test_no_torch_is_loaded_where_none_is_needed(tmp_path: Path) -> None:
    record = next((ROOT / "results").glob("*/config.yaml")).parent  # as much of a run as a report needs
    good = ["--help", "train --help", "train --print_config", "report --help", "export --help", f"report {record} --output {tmp_path}/a"]
    commands = [*good, "train --optim.lr fast"]
    lines, python = "\n".join([*commands, "--version"]), [sys.executable, "-c", WITHOUT_TORCH]
    result = subprocess.run(python, input=lines, capture_output=True, text=True, timeout=100)
    told = [line for line in result.stderr.splitlines() if not line.startswith("error: ")]
    assert told == [f"{2 * (line not in good)} set() {line}" for line in commands] + ["0 set() --version"]
    assert result.stdout.endswith(f"lstmlm {package.__version__}\n")
