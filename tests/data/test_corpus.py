"""Data sets as token ids: every source, the cache, bad input."""

import dataclasses
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lstmlm import UserError
from lstmlm.config import DataConfig
from lstmlm.data import corpus, sources
from lstmlm.data.corpus import load_corpus, load_split
from lstmlm.data.sources import toy_text


@pytest.fixture
def data(text_folder: Path, tmp_path: Path) -> DataConfig:
    folder = tmp_path / "text"
    shutil.copytree(text_folder, folder)
    return DataConfig(dataset=str(folder), cache_dir=str(tmp_path / "cache"))


def brute_force(path: Path) -> list[str]:
    return [token for line in path.read_text().splitlines() for token in [*line.split(), "<eos>"]]


def test_text_folder(data: DataConfig) -> None:
    loaded = load_corpus(data)
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        tokens = [loaded.vocabulary.tokens[i] for i in loaded.splits[split]]
        assert tokens == brute_force(Path(data.dataset) / f"{name}.txt")


def test_a_word_of_validation_only_is_unknown(data: DataConfig) -> None:
    (Path(data.dataset) / "valid.txt").write_text("w1 novel w2\n")
    loaded = load_corpus(data)
    assert "novel" not in loaded.vocabulary
    assert loaded.splits["validation"].tolist()[1] == loaded.vocabulary.unk


def test_characters(data: DataConfig) -> None:
    loaded = load_corpus(dataclasses.replace(data, level="char"))
    assert loaded.vocabulary.decode(loaded.splits["test"].tolist()) == (Path(data.dataset) / "test.txt").read_text()


def test_toy_is_the_generated_text(tmp_path: Path) -> None:
    loaded = load_corpus(DataConfig(dataset="toy", cache_dir=str(tmp_path)))
    assert [loaded.vocabulary.tokens[i] for i in loaded.splits["test"]] == toy_text("test").tokens


def hub_layout(folder: Path, splits: tuple[str, ...] = ("train", "validation", "test"), column: str = "text") -> Path:
    (folder / "some-subset").mkdir(parents=True)
    lines = []
    for split in splits:
        rows = ["", f" = {split} = \n", "", "a b c \n"]
        pq.write_table(pa.table({column: rows}), folder / "some-subset" / f"{split}-00000-of-00001.parquet")
        lines.append(f"  - split: {split}\n    path: some-subset/{split}-*")
    yaml = "configs:\n- config_name: some-subset\n  data_files:\n" + "\n".join(lines)
    (folder / "README.md").write_text(f"---\n{yaml}\n---\n")
    return folder


def test_hub_layout(tmp_path: Path) -> None:
    folder = hub_layout(tmp_path / "set")
    data = DataConfig(dataset=str(folder), subset="some-subset", cache_dir=str(tmp_path / "cache"))
    loaded = load_corpus(data)
    tokens = [loaded.vocabulary.tokens[i] for i in loaded.splits["train"]]
    assert tokens == ["<eos>", "=", "train", "=", "<eos>", "<eos>", "a", "b", "c", "<eos>"]


def test_wikitext_2_has_the_published_counts(wikitext: str, tmp_path: Path) -> None:
    loaded = load_corpus(DataConfig(dataset=wikitext, cache_dir=str(tmp_path)))
    assert len(loaded.vocabulary) == 33_278
    assert [len(stream) for stream in loaded.splits.values()] == [2_088_628, 217_646, 245_569]


def test_a_second_start_reads_no_text(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_corpus(data)

    def refuse(self: object, split: str) -> Iterator[str]:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(sources.TextSource, "lines", refuse)
    second = load_corpus(data)
    assert second.fingerprint == first.fingerprint
    assert second.vocabulary.tokens == first.vocabulary.tokens


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
def test_a_damaged_cache_is_rebuilt_and_told(
    data: DataConfig, damage: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
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


def _load_and_count(data: DataConfig) -> str:
    return load_corpus(data).fingerprint


def test_one_process_of_a_host_builds(data: DataConfig, tmp_path: Path) -> None:
    counter = tmp_path / "builds"
    original = corpus._write_tokens

    def counting(path: Path, lines: Iterator[str], vocabulary: object) -> None:
        with counter.open("a") as file:
            file.write("x")
        original(path, lines, vocabulary)  # type: ignore[arg-type]

    corpus._write_tokens = counting
    try:
        with multiprocessing.get_context("fork").Pool(4) as pool:
            fingerprints = pool.map(_load_and_count, [data] * 4)
    finally:
        corpus._write_tokens = original
    assert len(set(fingerprints)) == 1
    assert counter.read_text() == "xxx", "one build for each split"


def test_load_split_under_a_given_vocabulary(data: DataConfig) -> None:
    loaded = load_corpus(data)
    assert load_split(data, "test", loaded.vocabulary).equal(loaded.splits["test"])


def test_not_utf8_names_file_and_byte(data: DataConfig) -> None:
    (Path(data.dataset) / "valid.txt").write_bytes(b"good line\nbad \xff line\n")
    with pytest.raises(UserError, match=r"valid\.txt is not UTF-8 at byte 14"):
        load_corpus(data)


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_empty_split(data: DataConfig, name: str) -> None:
    (Path(data.dataset) / f"{name}.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        load_corpus(data)


def test_missing_split(data: DataConfig) -> None:
    (Path(data.dataset) / "valid.txt").unlink()
    with pytest.raises(UserError, match=r"'validation' is missing.*validation\.txt or valid\.txt"):
        load_corpus(data)


@pytest.mark.parametrize(
    ("layout", "subset", "message"),
    [
        ({"splits": ("train", "test")}, "some-subset", "no split 'validation'"),
        ({"column": "sentence"}, "some-subset", "no column 'text'"),
        ({}, "other", "other"),
    ],
)
def test_bad_hub_layout(tmp_path: Path, layout: dict[str, object], subset: str, message: str) -> None:
    folder = hub_layout(tmp_path / "set", **layout)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as caught:
        load_corpus(DataConfig(dataset=str(folder), subset=subset, cache_dir=str(tmp_path / "cache")))
    assert "\n" not in str(caught.value)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_corpus(DataConfig(dataset=str(tmp_path / "absent")))


def test_cache_that_cannot_be_written(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--data\.cache_dir"):
        load_corpus(dataclasses.replace(data, cache_dir=str(tmp_path / "file" / "cache")))
