"""Every training command of docs/data.md reads the text that it says it reads."""

import json
import re
import shlex
from pathlib import Path

import pytest

from lstmlm import load_config
from lstmlm.data.corpus import load_corpus
from tests.helpers import make_file

DOCS = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"(?:^ {4}|^\|.*`)(lstmlm train [^`\n]*)", DOCS, re.MULTILINE)
LINES = [f"It is line {i}, of a well-known book." for i in range(40)]
SPLITS = {"train": LINES[:36], "valid": LINES[36:38], "test": LINES[38:]}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, lines: list[str]) -> None:
        make_file(tmp_path / name, "".join(f"{line}\n" for line in lines).encode())

    monkeypatch.chdir(tmp_path)
    write("book.txt", LINES)
    for split, lines in SPLITS.items():
        write(f"folder/{split}.txt", lines)
        write(f"wiki/wiki.{split}.tokens", lines)
        if split != "train":
            write(f"several/{split}.txt", lines)
            write(f"rows/{split}.jsonl", [json.dumps({"story": line}) for line in lines])
    for number, first in enumerate(range(0, 36, 6), 1):
        lines = LINES[first : first + 6]
        write(f"several/train/{number}.txt.gz", lines)
        write(f"rows/train-{number:05}.jsonl", [json.dumps({"story": "\n".join(lines)})])
    assert len(COMMANDS) == 5
    config = load_config([*shlex.split(command)[2:], f"--data.cache_dir={tmp_path / 'cache'}"])
    corpus = load_corpus(config.data)
    for split, lines in zip(("train", "validation", "test"), SPLITS.values(), strict=True):
        assert corpus.facts[split].lines == len(lines)
        if not corpus.facts[split].unknown:
            assert corpus.vocabulary.decode(corpus.splits[split].tolist()) == "".join(f"{line}\n" for line in lines)


def test_novels_become_a_paragraph_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_file(tmp_path / "novels/b.txt", b"Two lines\nof one.\n\n\nThe end\n")
    make_file(tmp_path / "novels/a.txt", "\ufeffÉté.\r\n".encode())
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", DOCS, re.DOTALL)
    exec(code, {})
    assert (tmp_path / "novels.txt").read_text("utf-8").splitlines() == ["Été.", "Two lines of one.", "The end"]
