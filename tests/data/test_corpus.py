"""Data sets as token ids: every source, the cache, bad input."""

import dataclasses
import errno
import fcntl
import logging
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lstmlm import UserError, Vocabulary, cli
from lstmlm.config import DataConfig
from lstmlm.data import corpus, reading, sources
from lstmlm.data.corpus import load_corpus, load_split
from lstmlm.files import locked
from tests.helpers import data_card


@pytest.fixture
def data(text_folder: Path, tmp_path: Path) -> DataConfig:
    folder = tmp_path / "text"
    shutil.copytree(text_folder, folder)
    return DataConfig(dataset=str(folder), cache_dir=str(tmp_path / "cache"))


def test_hub_layout(tmp_path: Path) -> None:
    folder = tmp_path / "set/some-subset"
    folder.mkdir(parents=True)
    for split in sources.SPLITS:
        pq.write_table(pa.table({"text": ["", f" = {split} = \n", "", "a b c \n"]}), folder / f"{split}-00000-of-00001.parquet")
    card = data_card("some-subset", {split: f"some-subset/{split}-*" for split in sources.SPLITS})
    (folder.parent / "README.md").write_text(card)
    data = DataConfig(dataset=str(folder.parent), subset="some-subset", cache_dir=str(tmp_path / "cache"))
    loaded = load_corpus(data)
    tokens = [loaded.vocabulary.tokens[i] for i in loaded.splits["train"]]
    assert tokens == ["<eos>", "=", "train", "=", "<eos>", "<eos>", "a", "b", "c", "<eos>"]
    with pytest.raises(UserError, match=r"/set: .*other.*some-subset"):
        load_corpus(dataclasses.replace(data, subset="other"))


def test_wikitext_2_has_the_published_counts(wikitext: str, tmp_path: Path) -> None:
    loaded = load_corpus(DataConfig(dataset=wikitext, cache_dir=str(tmp_path)))
    assert len(loaded.vocabulary) == 33_278
    assert [len(stream) for stream in loaded.splits.values()] == [2_088_628, 217_646, 245_569]


def test_prepare_makes_what_training_needs(
    data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"--data.dataset={data.dataset}", f"--data.cache_dir={data.cache_dir}", "--train.epochs=2"]
    others = Vocabulary(["<unk>", "<eos>", "w1"])
    (tmp_path / "vocab.json").write_bytes(others.to_bytes())
    assert cli.prepare(arguments) == 0
    told = capsys.readouterr().out
    assert cli.prepare([*arguments, f"--train.init_from={tmp_path}"]) == 0

    monkeypatch.delattr(sources.FileSource, "blocks")
    loaded = load_corpus(data)
    assert told.splitlines()[:3] == loaded.lines()
    assert told.splitlines()[0] == "train: 160 lines, 2,811 tokens, 0.00% <unk>, 60 types, 0 of them seen once, longest line 30 tokens"
    assert told.splitlines()[3:] == [f"cache: 0.0 MB of token ids in {data.cache_dir}"]
    assert load_corpus(data, others).vocabulary is others


def test_changed_data_or_vocabulary_is_another_key(data: DataConfig) -> None:
    first = load_corpus(data)
    capped = load_corpus(dataclasses.replace(data, max_size=10))
    assert len(capped.vocabulary) == 10
    assert int(capped.splits["train"].max()) < 10
    path = Path(data.dataset) / "test.txt"
    path.write_text(path.read_text() + "w1\n")
    changed = load_corpus(data)
    assert len(changed.splits["test"]) == len(first.splits["test"]) + 2
    assert changed.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
@pytest.mark.parametrize("pattern", ["*.tokens", "*.vocab.json"])
def test_a_damaged_cache_is_rebuilt_and_told(data: DataConfig, damage: str, pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    first = load_corpus(data)
    for path in Path(data.cache_dir).glob(pattern):
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-7], "empty": b""}[damage])
    assert load_corpus(data).fingerprint == first.fingerprint
    assert caplog.messages
    assert all("is damaged; building it again" in message for message in caplog.messages)
    caplog.clear()
    load_corpus(data)
    assert caplog.messages == []


def fingerprint_of(data: DataConfig) -> str:
    return load_corpus(data).fingerprint


def test_one_process_of_a_host_builds(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "builds"
    original = corpus._write_tokens

    def counting(*arguments: object) -> None:
        with counter.open("a") as file:
            file.write("x")
        time.sleep(0.2)  # the others come meanwhile
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus, "_write_tokens", counting)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(fingerprint_of, [data] * 4))) == 1
    assert counter.read_text() == "xxx", "one build for each split"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, b"", "is empty") for name in ("train", "valid", "test")),
        ("valid", None, r"'validation' is missing.*validation\.txt or valid\.txt"),
        ("valid", b"good\n" * 10 + b"\xff\n", r"valid\.txt is not UTF-8 near b'good.*\\xff\\n': convert it, as iconv"),
    ],
)
def test_a_refused_split_leaves_nothing_half_made(data: DataConfig, name: str, content: bytes | None, message: str) -> None:
    path = Path(data.dataset) / f"{name}.txt"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(UserError, match=message):
        load_corpus(data)
    kept = {path.suffix for path in Path(data.cache_dir).glob("*")}
    assert kept <= {".json", ".tokens"}, "vocabulary and splits before it"


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("file/cache", r"cannot write .*name another folder with the option cache_dir"),
        ("no locks", r"no locks/\..*\.lock: No locks available.*another folder with the option cache_dir"),
        ("~nobody-of-this-name/cache", "no home folder"),
    ],
)
def test_cache_that_cannot_be_written(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, message: str) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if cache == "no locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=message):
        load_corpus(dataclasses.replace(data, cache_dir=cache))


def test_a_complete_cache_is_read_without_writing_wherever_the_data_lies(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_corpus(data)
    shutil.copytree(data.dataset, tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in Path(data.cache_dir).iterdir()}

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(corpus, "locked", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert load_corpus(dataclasses.replace(data, dataset=f"{tmp_path}/moved/")).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in Path(data.cache_dir).iterdir()} == before


def test_waiting_for_another_process_is_told(data: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    load_corpus(data)
    (made,) = Path(data.cache_dir).glob("*.vocab.json")
    made.unlink()
    lock = made.with_name(f".{made.name}.lock")
    with ThreadPoolExecutor() as pool, locked(lock, wait=False):
        loading = pool.submit(load_corpus, data)
        while not caplog.messages and not loading.done():
            time.sleep(0.05)
    assert f"waiting for another process, which holds {lock}" in caplog.messages


@pytest.mark.parametrize(("level", "normalize"), [("word", False), ("word", True), ("char", False)])
def test_facts_are_those_of_the_text(data: DataConfig, level: str, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the text as it is written, however it is cut: normalization drops the second of its words."""
    monkeypatch.setattr(reading, "BLOCK", 50)
    text = "one \u200b two\tthree\r\n\n<eos> w1 once\n" + "w2 " * 40
    (Path(data.dataset) / "valid.txt").write_text(text, newline="")
    config = dataclasses.replace(data, level=level, normalize=normalize)
    loaded = load_corpus(config)
    facts = loaded.facts["validation"]
    assert facts == load_split(config, "validation", loaded.vocabulary)[1]
    assert (facts.lines, facts.characters) == (4, len(text.replace("\r", "")) + 1)
    assert facts.words == 4 + 3 + 40 + 4
    ids = loaded.splits["validation"].tolist()
    assert facts.tokens == len(ids)
    assert facts.unknown == ids.count(0) > 0
    assert facts.once == sum(ids.count(i) == 1 for i in set(ids))
    assert facts.written_eos == (1 if level == "word" else 0)
    assert facts.longest == (41 if level == "word" else 121), "its <eos> among them"


def warnings(data: DataConfig, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    load_corpus(data)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_unknown_word_that_is_never_trained_is_told(data: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(data, caplog) == []
    folder = Path(data.dataset)
    (folder / "valid.txt").write_text("w1 novel w2\n")
    for _ in range(2):  # from the cache too
        (line,) = warnings(data, caplog)
        assert "<unk> never occurs in the training split" in line
        assert "25.00% of split validation: a new vocabulary of --data.min_count 2 makes what training has once <unk>" in line
    with (folder / "train.txt").open("a") as file:
        file.write("once\n")
    assert len(warnings(data, caplog)) == 1
    assert warnings(dataclasses.replace(data, min_count=2), caplog) == []
    with pytest.raises(UserError, match=r"only <unk> and <eos>, so .*: no token .* occurs 10000 times"):
        load_corpus(dataclasses.replace(data, min_count=10_000))


def test_a_text_without_spaces_is_told(data: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    """Each line is a word, and `min_count` would make nearly all of them <unk>."""
    for split, line in {"train": "我爱你", "valid": "你爱我", "test": "我爱你"}.items():
        (Path(data.dataset) / f"{split}.txt").write_text(f"{line}\n" * 9, "utf-8")
    (line,) = warnings(dataclasses.replace(data, batch_size=2, bptt=5), caplog)
    assert line.startswith("50% of split validation are <unk>, so a perplexity says little: English as people write it needs --data.t")


def test_eos_in_the_text_and_a_short_text_are_told(data: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    (Path(data.dataset) / "test.txt").write_text("w1 <eos> w2\n")
    assert warnings(data, caplog) == ["split test has <eos> in its own text, 1 times: each is read as a line end"]
    (line,) = warnings(dataclasses.replace(data, dataset=data.dataset, batch_size=60, bptt=50), caplog)[1:]
    assert "too few for one segment of 60 columns" in line


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_that_change_while_they_are_read_leave_nothing(split: str, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(data.dataset) / f"{split}.txt"
    text, make = path.read_text(), corpus.open_source

    def edited(config: DataConfig) -> Any:
        source = make(config)
        blocks = source.blocks

        def edit(name: str) -> Any:
            if name == split:
                path.write_text("an edit that is undone later\n")
            return blocks(name)

        source.blocks = edit  # type: ignore[method-assign]
        return source

    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"were changed while split '{split}' was read"):
        patch.setattr(corpus, "open_source", edited)
        load_corpus(data)
    path.write_text(text)
    assert load_corpus(data).facts[split].lines == text.count("\n")
