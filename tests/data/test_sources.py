"""Which file makes which split, and what is said where that is not clear."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from lstmlm import UserError
from lstmlm.config import DataConfig
from lstmlm.console import UsageError
from lstmlm.data import sources
from lstmlm.data.sources import SPLITS, find_splits, open_source
from tests.helpers import data_card, make_file


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        make_file(folder / name, f"{name}\n".encode())
    return folder


def text_of(dataset: Path | str, split: str, **keys: str) -> str:
    return "".join(open_source(DataConfig(dataset=str(dataset), **keys)).blocks(split))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["train.txt", "valid.txt", "test.txt", "README.md"], ["train.txt", "valid.txt", "test.txt"]),
        (["train.txt.gz", "validation.txt.gz", "test.txt"], ["train.txt.gz", "validation.txt.gz", "test.txt"]),
        (["wiki.train.tokens", "wiki.valid.tokens"], ["wiki.train.tokens", "wiki.valid.tokens"]),
        (["train-10.txt", "train-9.txt", "train-00001.txt"], ["train-00001.txt", "train-9.txt", "train-10.txt"]),
        (["train/b10.txt.gz", "train/b9.txt.gz", "train/notes.md", "dev/a.txt"], ["train/b9.txt.gz", "train/b10.txt.gz", "dev/a.txt"]),
        (["train-0-of-2.txt", "train-1-of-2.txt"], ["train-0-of-2.txt", "train-1-of-2.txt"]),
        (["TRAIN.TXT", "._TRAIN.TXT", "Dev/10.Txt", "Dev/2.TXT", "Dev/._1.txt"], ["TRAIN.TXT", "Dev/2.TXT", "Dev/10.Txt"]),
        (["Train-1.txt", "train-2.txt", "old.train.txt"], ["Train-1.txt", "train-2.txt"]),
        (["book.txt", "trainer.txt", "train.md", "train_old.txt", ".train.txt"], []),
    ],
)  # fmt: skip
def test_splits_are_found_by_names(tmp_path: Path, names: list[str], wanted: list[str]) -> None:
    found = find_splits(touch(tmp_path, *names))
    assert [str(path.relative_to(tmp_path)) for split in SPLITS for path in found.get(split, [])] == wanted


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.txt", "valid.txt", "validation.txt"], r"valid\.txt and validation\.txt claim to be split 'validation'"),
        (["train.txt", "train.txt.gz"], r"train\.txt and train\.txt\.gz claim to be split 'train'"),
        (["train.txt", "train/a.txt"], r"train/ and train\.txt claim to be split 'train'"),
        (["train.csv", "train-1.csv"], r"train-\* and train\.csv claim to be split 'train'"),
        (["train-1.txt", "train-1.txt.gz"], r"train-1\.txt\.gz may be train-1\.txt once more"),
        (["train/a.txt", "train/a.txt-1.txt", "train/a.txt.gz"], r"a\.txt\.gz may be a\.txt once more"),
        (["train.parquet", "test.txt"], r"mixes forms, train\.parquet and test\.txt"),
        (["train-0-of-3.txt", "train-2-of-3.txt"], "is one of 3 files, but 2 are there"),
    ],
)
def test_what_is_not_clear_is_not_chosen(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_splits(touch(tmp_path, *names))


PTB, WIKI = ["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"], ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"]
BELOW = ["data/train.txt", "data/dev.txt", "data/test.txt"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (PTB, PTB),
        (
            ["a-train.2.txt", "a-train.10.txt", "a_dev.txt", "a.test.txt", "b.txt"],
            ["a-train.2.txt a-train.10.txt", "a_dev.txt", "a.test.txt"],
        ),
        (["ptb.train.txt", "ptb.char.train.txt"], r"ptb\.char\.train\.txt and ptb\.train\.txt claim to be split 'train'"),
        (["a-train-1.txt", "b-train-1.txt"], r"a-train-\* and b-train-\* claim to be split 'train'"),
        (["a-train.txt", "b-train.txt", *BELOW, "c/x-test.txt"], BELOW),
        ([*WIKI, "my.train.txt"], WIKI),
    ],
)
def test_other_names_count_where_there_are_none_of_ours(tmp_path: Path, names: list[str], wanted: list[str] | str) -> None:
    touch(tmp_path, *names)
    if isinstance(wanted, str):
        with pytest.raises(UsageError, match=wanted):
            text_of(tmp_path, "train")
    else:
        assert [" ".join(text_of(tmp_path, split).split()) for split in SPLITS] == wanted


def test_a_card_comes_before_other_names(tmp_path: Path) -> None:
    touch(tmp_path, "x-train.txt", "x-dev.txt", "x-test.txt", "y.txt")
    (tmp_path / "README.md").write_text(data_card("small", {"train": "x-train.txt", "validation": "x-test.txt", "test": "y.txt"}))
    assert [text_of(tmp_path, split, subset="small") for split in SPLITS] == ["x-train.txt\n", "x-test.txt\n", "y.txt\n"]


def test_a_split_that_other_names_lack_is_cut(tmp_path: Path) -> None:
    (tmp_path / "Stories-train.txt").write_text("".join(f"{i}\n" for i in range(40)))
    touch(tmp_path, "Stories-valid.txt")
    assert text_of(tmp_path, "test") == "38\n39\n"


def test_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "one/train.txt")
    assert text_of(tmp_path, "train") == "one/train.txt\n", "the only one"
    touch(tmp_path, "two/train.txt")
    assert text_of(tmp_path, "train", subset="two") == "two/train.txt\n"
    with pytest.raises(UsageError, match=r"several subsets, one, two: name one of them with data.subset"):
        text_of(tmp_path, "train")
    touch(tmp_path, "train.txt")
    with pytest.raises(UsageError, match="has files of its own and no subset 'three'"):
        text_of(tmp_path, "train", subset="three")
    # What earlier versions wrote into every configuration.
    assert text_of(tmp_path, "train", subset="wikitext-2-v1") == "train.txt\n"
    monkeypatch.chdir(touch(tmp_path, "here/some/thing/train.txt") / "here")
    assert text_of("some/thing", "train") == "here/some/thing/train.txt\n", "a relative name is local where it exists"


@pytest.mark.parametrize("subset", [None, "wikitext-2-v1"])
def test_null_means_wikitext_2_for_the_default_data_set(subset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wikitext, other = (open_source(data) for data in (DataConfig(subset=subset), DataConfig(dataset="some/thing")))
    assert wikitext == sources.HubSource("Salesforce/wikitext", "text", "wikitext-2-v1")
    assert other == sources.HubSource("some/thing", "text", None)


@pytest.mark.parametrize("n", [20, 39, 1000])
@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl"])
def test_one_file_is_cut_at_line_ends(tmp_path: Path, n: int, ending: str) -> None:
    lines = [f"line {i}" if i % 3 else "" for i in range(n)]
    text = "".join(f'{{"text": "{line}"}}\n' if ending == ".jsonl" else f"{line}\n" for line in lines).encode()
    path = make_file(tmp_path / f"book{ending}", text)
    pieces = [text_of(path, split).splitlines() for split in SPLITS]
    assert [len(piece) for piece in pieces] == [9 * n // 10, 19 * n // 20 - 9 * n // 10, n - 19 * n // 20]
    assert [line for piece in pieces for line in piece] == lines
    source = open_source(DataConfig(dataset=str(path)))
    assert len({source.fingerprint(split) for split in SPLITS}) == 3


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("absent.txt", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("~nobody-of-this-name/x", "no home folder"),
        ("book.doc", "must end with one of"),
        ("pipe", "neither a file nor a folder"),
        ("x" * 300, "cannot read x+: File name too long"),
    ],
)
def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.doc").write_text("a\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(dataset=dataset))


def test_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    broken = datasets.exceptions.DatasetGenerationError("An error occurred")
    broken.__cause__ = ValueError("Expected 1 fields in line 3")
    errors = [datasets.exceptions.DatasetNotFoundError(), ConnectionError("Couldn't reach 'bok' on the Hub"), broken]
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=errors))
    with pytest.raises(UsageError, match="no such file or folder, and not on the Hub"):
        text_of("no-such-thing", "train")
    with pytest.raises(UserError, match=r"data set bok, which is no file or folder here: Couldn't reach .*; the option dataset takes"):
        text_of("bok", "train")
    with pytest.raises(
        UserError, match=r"data set a/b \(subset c\), .*: An error occurred: Expected 1 fields in line 3; the option dataset"
    ):
        text_of("a/b", "train", subset="c")


@pytest.mark.parametrize(
    "names", [["chapter1.txt", "chapter2.txt"], ["README.md", "ca01", "cats.txt"], ["ud-train.conllu", ".hidden"], ["train.zip"], []]
)
def test_a_folder_that_says_of_no_file_which_split_it_is(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"call its files train\.txt, .*\.tsv, ") as caught:
        text_of(touch(tmp_path, *names), "validation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("configs: [", "while parsing a flow node"),
        ("configs:\n- {config_name: x, data_files: a.txt}\n- {config_name: y, data_files: a.txt}", r"\['x', 'y'\].*, or name a subset"),
    ],
)
def test_a_card_that_the_library_cannot_read(tmp_path: Path, card: str, told: str) -> None:
    touch(tmp_path, "a.txt")
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(UsageError, match=f"^[^\n]*{told}[^\n]*$"):
        text_of(tmp_path, "validation")


def test_a_card_may_name_the_place_that_a_link_leads_to(tmp_path: Path) -> None:
    touch(tmp_path / "set", "a.txt")
    (tmp_path / "set/README.md").write_text(data_card("default", {"train": f"{tmp_path}/set/a.txt"}))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert sources.local_files(DataConfig(dataset=str(tmp_path / "link"))) == [tmp_path / "set/a.txt"]


@pytest.mark.parametrize("where", ["../private.txt", "{folder}/private.txt"])
def test_a_card_names_files_of_its_folder_alone(where: str, tmp_path: Path) -> None:
    """Its maker must not have files of this machine read."""
    touch(tmp_path, "private.txt")
    touch(tmp_path / "set", "a.txt")
    (tmp_path / "set/README.md").write_text(data_card("default", {"train": where.format(folder=tmp_path)}))
    with pytest.raises(UsageError, match=r"^[^\n]*/set: its card names [^\n]*private\.txt, which is not in the folder$"):
        text_of(tmp_path / "set", "train")


ROWS = [f"row {i}" for i in range(40)]


def library_folder(folder: Path, rows: dict[str, int]) -> Path:
    """A data set in the Hub's layout, whose card alone says which file is which split."""
    for name, number in rows.items():
        (folder / f"{name}_.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in ROWS[:number]))
    (folder / "README.md").write_text(data_card("default", {name: f"{name}_.jsonl" for name in rows}))
    return folder


@pytest.mark.parametrize(
    ("has", "wanted", "part"),
    [
        ({"train": 40}, {"train": (0, 36), "validation": (36, 38), "test": (38, 40)}, "rows 37 to 38 of 40"),
        ({"train": 40, "dev": 5}, {"train": (0, 38), "validation": (0, 5), "test": (38, 40)}, "the data set's split dev"),
        ({"train": 39, "test": 3, "x": 9}, {"train": (0, 37), "validation": (37, 39), "test": (0, 3)}, "rows 38 to 39 of 39"),
        ({"train": 3, "validation": 2, "val": 9, "test": 1}, {"train": (0, 3), "validation": (0, 2), "test": (0, 1)}, ""),
    ],
)  # fmt: skip
def test_splits_that_a_data_set_lacks_are_cut_from_its_train(
    tmp_path: Path, has: dict[str, int], wanted: dict[str, tuple[int, int]], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is named like a builder of the library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parquet").mkdir()
    source = open_source(DataConfig(dataset=str(library_folder(Path("parquet"), has))))
    for split, (first, end) in wanted.items():
        assert "".join(source.blocks(split)).splitlines() == ROWS[first:end], split
    assert source.part("validation").removeprefix("lines or ") == part


def test_what_is_too_short_to_be_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"19 lines or rows to train on, of which validation and test cannot be cut, which needs 20: "):
        text_of(library_folder(tmp_path, {"train": 19}), "test")
    (tmp_path / "book.txt").write_text("a\n" * 19)
    with pytest.raises(UserError, match=r"book\.txt has 19 lines or rows to train on, of which validation and test cannot be cut"):
        text_of(tmp_path / "book.txt", "train")


def test_a_cache_of_the_hub_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    complete = tmp_path / "owner___name" / "default" / "0.0.0" / "abc"
    complete.mkdir(parents=True)
    (complete / "dataset_info.json").write_text("{}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def load(dataset: str, subset: str | None, cache_dir: str | None = None) -> datasets.DatasetDict:
        if cache_dir is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "lock"))
        (Path(cache_dir) / "owner___name" / "default" / "0.0.0" / "lock").touch()
        assert (Path(cache_dir) / complete.relative_to(tmp_path)).samefile(complete)
        return datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": ["a", "b"]}))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert text_of("owner/name", "test") == "a\nb\n"
    assert [path.name for path in complete.parent.iterdir()] == ["abc"]
