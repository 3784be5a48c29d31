"""The `lstmlm` command: what it lists, and that a command is the script of the same name."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lstmlm as package
from lstmlm import cli
from tests.helpers import ROOT

pytestmark = pytest.mark.system  # whole runs or processes


def lstmlm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lstmlm", *arguments], capture_output=True, text=True, timeout=100)


def test_its_version() -> None:
    assert lstmlm("--version").stdout == f"lstmlm {package.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_alone_it_lists_the_commands_on_one_screen(arguments: list[str]) -> None:
    result = lstmlm(*arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert re.findall(r"^  lstmlm (\w+)", result.stdout, re.MULTILINE) == list(cli.COMMANDS)


def test_an_unknown_command_is_one_line() -> None:
    result = lstmlm("dance")
    assert result.returncode == 2
    assert result.stderr == f"error: there is no command 'dance': name one of {', '.join(cli.COMMANDS)}\n"


def test_a_commands_arguments_come_after_it() -> None:
    result = lstmlm("evaluate", "--split", "dev")
    assert result.returncode == 2
    assert "no split 'dev'" in result.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_script_too(name: str) -> None:
    text = (ROOT / "scripts" / f"{name}.py").read_text()
    function = cli.COMMANDS[name].__name__
    assert f"from lstmlm.cli import {function}\n" in text
    assert f"run_script({function})" in text


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
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print({"torch", "accelerate", "datasets"} & sys.modules.keys(), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--print_config"], 0),
        (["train", "--optim.lr", "fast"], 2),
        (["report", "--help"], 0),
        (["export", "--help"], 0),
        (["report", "RUN", "--output", "OUT"], 0),
    ],
)
def test_no_torch_is_loaded_where_none_is_needed(arguments: list[str], status: int, tmp_path: Path) -> None:
    record = str(next((ROOT / "results").glob("*/config.yaml")).parent)  # as much of a run as a report needs
    places = {"RUN": record, "OUT": str(tmp_path / "report.html")}
    command = [sys.executable, "-c", WITHOUT_TORCH, *(places.get(argument, argument) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == status, result.stderr
    assert result.stderr.splitlines()[-1] == "set()"
