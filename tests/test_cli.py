"""The `lstmlm` command: what it lists, and that a command is the script of the same name."""

import re
import subprocess
import sys

import pytest

from lstmlm import cli
from tests.conftest import ROOT

pytestmark = pytest.mark.system  # whole runs or processes


def lstmlm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = "import sys; from lstmlm.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=100)


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
    assert f"from lstmlm.cli import {name}\n" in text
    assert f"run_script({name})" in text
