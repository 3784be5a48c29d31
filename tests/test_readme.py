"""Every command of the README and of docs/running.md loads, options of the other pages exist, and the Python in the README runs."""

import re
import shlex
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lstmlm import cli, load_config
from lstmlm.cli import COMMANDS as COMMANDS_OF
from lstmlm.data import toy
from tests.helpers import metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "running.md").read_text()
COMMANDS = sorted(
    {
        line.strip()
        for line in re.findall(r"^ {4}(.*)$|`([^`\n]*scripts/\w+\.py[^`\n]*)`", PAGES, re.MULTILINE)
        for line in line
        if re.match(r"(on host K: )?(accelerate launch|python) .*scripts/\w+\.py", line)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if command == "python scripts/train.py --train.run_dir runs/a --train.resume true":
        Path("runs/a").mkdir(parents=True)  # of the run that is to go on
    assert len(COMMANDS) >= 12
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    assert (ROOT / words[script]).exists()
    flags, arguments = words[:script], words[script + 1 :]
    if "--config_file" in flags:
        assert (ROOT / flags[flags.index("--config_file") + 1]).exists()
    if words[script] == "scripts/train.py" and "--help" not in arguments:
        load_config([str(ROOT / word) if word.startswith("configs/") else word for word in arguments])


# Of every page, the commands that only parse their options: those that train are above and in test_docs_data.py.
CALLS = sorted(
    (name, re.split(r" > | \\|2>", rest)[0].strip())
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for name, rest in re.findall(
        r"(?:^ {4}|^\|.*`)(?:\.venv/bin/)?(?:lstmlm |python scripts/)(\w+)(?:\.py)? ([^`\n]*)", page.read_text(), re.MULTILINE
    )
    if name in {*COMMANDS_OF} - {"train", "prepare"}
)


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[" ".join(call) for call in CALLS])
def test_options_of_the_docs(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(parser: ArgumentParser, argv: list[str], **_: bool) -> None:
        parser.parse_args(argv)
        raise InterruptedError

    monkeypatch.setattr(cli, "parse", parsed)
    with pytest.raises(InterruptedError):
        COMMANDS_OF[name](shlex.split(arguments))


def test_no_comment_stands_behind_a_command() -> None:
    """zsh, the shell of macOS, hands it to the command."""
    pages = "".join(page.read_text() for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
    assert re.findall(r"^ {4,}(?:\S*/)?(?:lstmlm|python|accelerate|pip|make|docker|wandb|launch) .* #.*$", pages, re.MULTILINE) == []


def test_every_file_that_a_page_names_is_there() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        text = page.read_text()
        links = re.findall(r"\]\((?!http)([\w./-]+)(?:#[\w-]+)?\)", text)
        named = re.findall(r"`((?:configs|scripts|tests|lstmlm)/[\w./-]+)`", text)
        assert [each for each in links if not (page.parent / each).exists()] == []
        assert [each for each in named if not (ROOT / each).exists()] == []


@pytest.mark.system
def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache is
    monkeypatch.setattr(toy, "TOKENS", dict.fromkeys(toy.TOKENS, 2000))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    exec(code.replace('"max_steps": 200', '"max_steps": 3, "threads": 1'), {})
    assert [line["step"] for line in metrics(tmp_path / "runs/c")][-1] == 3
