"""Every command, with every odd name: what it reads, what others have and what is no file stays; one line says what is wrong."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lstmlm import load_config
from lstmlm.cli import COMMANDS
from lstmlm.console import run_script
from tests.helpers import fresh_train, make_file, small_arguments

LONG = "a" * 300
OUTPUTS = {
    "score": ["score", "a.txt", "--model=run", "--output"],
    "score --add": ["score", "a.txt", "--model=run", "--add=frequency", "--dataset=a.parquet", "--output"],
    "score --html": ["score", "a.txt", "--model=run", "--output=ok", "--html"],
    "evaluate": ["evaluate", "--text=a.txt", "--model=run", "--dataset=a.parquet", "--output"],
    "pairs": ["pairs", "a.jsonl", "--model=run", "--output"],
    "report": ["report", "run", "--output"],
    "report --png": ["report", "run", "--output=ok", "--png"],
    "export onnx": ["export", "run", "--to=onnx", "--output"],
    "export transformers": ["export", "run", "--to=transformers", "--output"],
    "import": ["import", "a.pt", "--vocab=a.txt", "--output"],
}
FILES = ["run/metrics.jsonl", "run/model/model.safetensors", "stored.parquet", "soft", "fifo", "/dev/zero", "run", "absent/a", ""]
FOLDERS = ["run/model", "a.txt", "fifo", "/dev/zero", "a.txt/b", "-", ""]
INPUTS = [
    ["score", "--model=run"],
    ["evaluate", "--model=run", "--text"],
    ["evaluate", "--model=run", "--cache_dir=cache", "--dataset"],
    ["pairs", "--model=run"],
    ["generate", "--model=run", "--prompt_file"],
    ["score", "a.txt", "--model"],
    ["evaluate", "--text=a.txt", "--model"],
    ["pairs", "a.jsonl", "--model"],
    ["generate", "--model"],
    ["export", "--to=onnx", "--output=new"],
    ["import", "--vocab=a.txt", "--output=new"],
    ["train", "--tracking.trackers=[]", "--config"],
    ["train", "--tracking.trackers=[]", "--data.dataset"],
    ["train", "--tracking.trackers=[]", "--data.dataset=toy", "--train.init_from"],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Iterator[Path]:
    """A run and its model, texts, and things that are no files; the process stands there."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fresh_train(load_config(small_arguments(text_folder, folder, "--train.max_steps=1")))
        Path("run/model/model.safetensors").rename("stored.parquet")  # as some stores of large files have it
        Path("run/model/model.safetensors").symlink_to("../../stored.parquet")
        Path("a.txt").write_text("w1 w2\n")
        Path("a.jsonl").write_text(json.dumps({"UID": "a", "sentence_good": "w1 w2", "sentence_bad": "w2 w1"}) + "\n")
        pyarrow.parquet.write_table(pyarrow.table({"text": ["w1 w2"]}), "a.parquet")
        Path("soft").symlink_to("run/config.yaml")
        os.mkfifo("fifo")
        yield folder


def state(folder: Path) -> dict[Path, object]:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if "cache" not in path.parts}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says, which ends with status 1 or 2, has no result and does not hang."""
    signal.alarm(60)
    name, *rest = arguments
    assert run_script(lambda: COMMANDS[name](rest)) in (1, 2), arguments
    signal.alarm(0)
    out, err = capsys.readouterr()
    assert out == ""
    *before, line = err.splitlines()
    assert all(each.startswith("warning: ") for each in before), err
    assert line.startswith("error: ")
    assert "rank 0 failed" not in line
    return line


@pytest.mark.parametrize("command", OUTPUTS.values(), ids=list(OUTPUTS))
def test_an_output_destroys_nothing(command: list[str], trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip({"report": "matplotlib", "export": "transformers"}.get(command[0], "pytest"))
    pytest.importorskip("onnx" if "--to=onnx" in command else "pytest")
    before, zero = state(trained), Path("/dev/zero").stat()
    of_folders = command[0] in ("export", "import") or command[-1] == "--png"
    read = [word.rpartition("=")[2] for word in command if word.startswith(("a.", "--text=", "--dataset="))]
    for name in [LONG, *(FOLDERS if of_folders else [*FILES, *read])]:
        line = refusal([*command[:-1], f"{command[-1]}={name}"], capsys)
        assert line.startswith(f"error: {command[-1]}{f' {name}' * (name != '')}"), line
    assert state(trained) == before
    assert Path("/dev/zero").stat().st_rdev == zero.st_rdev


def test_what_a_split_is_read_from_stays(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in capitals, and one in a folder that is a link; a model that says nothing of its text keeps nobody from a result."""
    for name in ("caps/Train.parquet", "caps/Valid.parquet", "caps/Test.parquet", "real/1.parquet", "linked/train.parquet"):
        make_file(Path(name), Path("a.parquet").read_bytes())
    Path("linked/test").symlink_to("../real")
    for name in ("caps/Test.parquet", "linked/test/1.parquet"):
        line = refusal(["evaluate", "--model=run", f"--dataset={name.partition('/')[0]}", f"--output={name}"], capsys)
        assert "reads or writes already" in line
    shutil.copytree("run/model", "alone")
    assert COMMANDS["evaluate"](["--text=a.txt", "--model=alone", "--output=ok.parquet"]) == 0


@pytest.mark.parametrize("command", INPUTS, ids=" ".join)
def test_what_cannot_be_read_is_one_line(command: list[str], trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(trained)
    for name in ("fifo", "/dev/zero", "absent/a/b", "a.txt/b", "", LONG, "s\udcff", "\x1b[31m"):
        end = [f"{command[-1]}={name}"] if command[-1].count("=") == 0 and len(command) > 1 else [command[-1], name]
        line = refusal([*command[:-1], *end], capsys)
        assert line.isprintable()
    assert state(trained) == before


def test_a_run_directory_that_cannot_be_made(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "a.txt/b", "fifo", "/dev/zero", LONG):
        line = refusal(["train", "--tracking.trackers=[]", "--data.dataset=toy", f"--train.run_dir={name}"], capsys)
        assert f"cannot write {name}" in line


def test_a_prompt_that_is_no_text_is_told(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for raw in ([], ["--raw"]):
        assert refusal(["generate", "--model=run", "--prompt=w1 \udcff", *raw], capsys).endswith(r"UTF-8: w1 \udcff")


def test_results_on_standard_output_are_one(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_script(lambda: COMMANDS["pairs"](["a.jsonl", "--model=run", "--output=/dev/stdout"])) == 0
    out, err = capfd.readouterr()
    (pair,) = map(json.loads, out.splitlines())
    assert pair["UID"] == "a"
    assert err.startswith("UID\tpairs")
    assert run_script(lambda: COMMANDS["score"](["a.txt", "--model=run", "--output=-", "--html=-"])) == 2
    assert "standard output has the table" in capfd.readouterr().err
