"""Which text makes which split: files of several forms, a data set in the Hub's layout or on the Hub, or the toy language."""

import errno
import hashlib
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

from lstmlm.config import DataConfig
from lstmlm.console import UsageError, UserError, one_line
from lstmlm.data import toy
from lstmlm.data.reading import ENDINGS, check_column, check_form, form_of, read_blocks, row_text, rows_to_blocks, units
from lstmlm.files import open_file, user_path

SPLITS = ("train", "validation", "test")
DEFAULT_DATASET, DEFAULT_SUBSET = DataConfig.dataset, "wikitext-2-v1"
NAMES = {  # of files, and the split that each means
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_SPLIT_NAME = re.compile(rf"(?:wiki\.)?(?P<name>{'|'.join(NAMES)})(?P<number>[-_.]\d+(?:-of-(?P<of>\d+))?)?")
FAULTS = (OSError, EOFError, zlib.error, ValueError, RuntimeError, StopIteration)  # that the library `datasets` lets through
LEAST_UNITS = 20  # lines or rows of what is cut into splits, some of which are a twentieth of it


class Source(Protocol):
    """Where the text of a split comes from."""

    def fingerprint(self, split: str) -> str:
        """A hash of the split's content, cheap next to encoding it, and the same wherever the data lies."""

    def blocks(self, split: str) -> Iterator[str]:
        """The split's plain text, in blocks as `reading` makes them."""

    def part(self, split: str) -> str:
        """Which part of the data set the split is, where the data set does not say it itself; else empty."""
        return ""


@dataclass
class FileSource(Source):
    """Files that make up the splits, read in the order of their names."""

    files: dict[str, list[Path]]  # of each split
    column: str  # where the text of a row stands
    place: str  # the name that the user gave, for messages

    def _files(self, split: str) -> list[Path]:
        if split not in self.files:
            names = " or ".join(f"{name}.txt" for name, meaning in NAMES.items() if meaning == split)
            raise UsageError(f"split {split!r} is missing: {self.place} has no {names} (endings that are read: {ENDINGS})")
        return self.files[split]

    def fingerprint(self, split: str) -> str:
        return " ".join([self.column, *(f"{form_of(path)} {_file_hash(path)}" for path in self._files(split))])

    def blocks(self, split: str) -> Iterator[str]:
        for path in self._files(split):
            yield from read_blocks(path, self.column)


@dataclass
class PieceSource(Source):
    """One file of n lines (a text) or rows (other forms): the first 9n // 10 train, up to 19n // 20 validate, the rest test."""

    path: Path
    column: str  # where the text of a row stands

    @cached_property
    def _hash(self) -> str:
        return _file_hash(self.path)

    @cached_property
    def _units(self) -> int:
        return units(self.path, self.column)

    def fingerprint(self, split: str) -> str:
        return f"90/5/5 {split} {self.column} {form_of(self.path)} {self._hash}"

    def blocks(self, split: str) -> Iterator[str]:
        return read_blocks(self.path, self.column, *self._ends(split))

    def part(self, split: str) -> str:
        first, end = self._ends(split)
        return f"{self._kind} {first + 1:,} to {end:,} of {self._units:,}"

    @property
    def _kind(self) -> str:
        return "lines" if form_of(self.path) == "text" else "rows"

    def _ends(self, split: str) -> tuple[int, int]:
        return _cut(self._units, SPLITS, f"{self.path} has {self._units} {self._kind}")[split]


def _cut(n: int, splits: Sequence[str], has: str) -> dict[str, tuple[int, int]]:
    """First and end of each split, where n lines or rows are cut into train and one or two others, a twentieth each.

    Raises:
        UserError: They are too few, with what the data set `has`.
    """
    if n < LEAST_UNITS:
        remedy = "give a folder with train.txt, validation.txt and test.txt instead"
        raise UserError(f"{has}, and to be cut into splits it needs {LEAST_UNITS}: {remedy}")
    starts = [0, *(n * (20 - left) // 20 for left in range(len(splits) - 1, 0, -1)), n]
    return dict(zip(splits, pairwise(starts), strict=True))


@dataclass
class HubSource(Source):
    """A data set on the Hugging Face Hub, or a folder that only the library `datasets` understands."""

    dataset: str  # Hub id or folder
    subset: str | None  # its configuration; None where it has only one
    column: str  # where the text of a row stands

    @cached_property
    def _rows(self) -> Any:
        return _load_dataset(self.dataset, self.subset)

    @cached_property
    def _units(self) -> int:
        return sum(1 for _ in self._values("train"))

    @cached_property
    def _folder_hash(self) -> str:
        folder, digest = Path(self.dataset).expanduser(), hashlib.sha256()
        for path in _files_below(folder):
            digest.update(f"{path.relative_to(folder)} {_file_hash(path)} ".encode())
        return digest.hexdigest()

    def _place(self, split: str) -> tuple[str, int, int | None]:
        """Where the split stands: the data set's own split, and the first and the end row of it; None = all.

        Another name for the split will do. Of what the data set lacks, each is a twentieth of its train, at the end.
        """
        own = {NAMES[name]: name for name in reversed(NAMES) if name in self._rows}
        absent = [name for name in SPLITS if name not in own]
        if split in own and not (split == "train" and absent):
            return own[split], 0, None
        if "train" not in own:
            raise UsageError(f"data set {self.dataset} has no split {split!r}, only {', '.join(self._rows)}")
        lacks = f"no split {' and no split '.join(map(repr, absent))}"
        return "train", *_cut(self._units, ["train", *absent], f"data set {self.dataset} has {lacks}, and {self._units} rows of train")[
            split
        ]

    def fingerprint(self, split: str) -> str:
        if Path(self.dataset).expanduser().is_dir():  # its files: no need to import datasets when the tokens are cached
            content = self._folder_hash
        else:
            digest = hashlib.sha256()
            for block in self.blocks(split):
                digest.update(block.encode())
            content = digest.hexdigest()
        return f"{split} {self.subset} {self.column} {content}"

    def blocks(self, split: str) -> Iterator[str]:
        name, first, end = self._place(split)
        rows = islice(enumerate(self._values(name), 1), first, end)
        return rows_to_blocks(row_text(value, number, f"split {name!r} of {self.dataset}", self.column) for number, value in rows)

    def part(self, split: str) -> str:
        name, first, end = self._place(split)
        if end is not None:
            return f"rows {first + 1:,} to {end:,} of {self._units:,} of the data set's split {name}"
        return f"the data set's split {name}" if name != split else ""

    def _values(self, name: str) -> Iterator[object]:
        number, place = 0, f"split {name!r} of {self.dataset}"
        with _by_the_library(lambda: f"cannot read {place} after row {number}"):
            for batch in self._rows[name].iter(batch_size=1000):
                check_column(self.column, batch, place)
                for value in batch[self.column]:
                    yield value
                    number += 1


def _load_dataset(dataset: str, subset: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    folder = Path(dataset).expanduser()
    name = f"data set {dataset}" + (f" (subset {subset})" if subset else "")
    if folder.is_dir():
        # Not through the library's own cache: it goes by the folder's name and would not notice changed files.
        with _by_the_library(lambda: f"cannot load {name}"), tempfile.TemporaryDirectory() as empty:
            # Absolute: a folder named `csv` or `parquet` is not one of the library's own builders.
            return datasets.load_dataset(str(folder.absolute()), subset, streaming=True, cache_dir=empty)
    remedy = f"; name a file or folder, or {toy.NAME}, the built-in language"
    with _by_the_library(lambda: f"cannot load {name}, which is no file or folder here", remedy):
        try:
            return datasets.load_dataset(dataset, subset)
        except datasets.exceptions.DatasetNotFoundError:
            raise UsageError(f"{dataset}: no such file or folder, and not on the Hub") from None
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        # The library locks its cache even to read it. Where that cannot be written, it reads through links from another place.
        with tempfile.TemporaryDirectory() as place:
            cache = Path(datasets.config.HF_DATASETS_CACHE)
            for info in cache.glob("*/*/*/*/dataset_info.json"):
                link = place / info.parent.relative_to(cache)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(info.parent)
            return datasets.load_dataset(dataset, subset, cache_dir=place)


@contextmanager
def _by_the_library(problem: Callable[[], str], remedy: str = "") -> Iterator[None]:
    """What the library `datasets` does within the block. Its errors become one line.

    The line has what the library logs of the error, as that names the file; else what it raises.
    """
    import datasets

    log, told = logging.getLogger("datasets"), list[str]()
    listening, before = logging.Handler(logging.ERROR), (log.handlers, log.propagate)
    listening.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log.handlers, log.propagate = [listening], False
    try:
        yield
    except (*FAULTS, datasets.exceptions.DatasetsError) as error:
        reason = told[-1] if told else str(error) or "a file in it is empty"  # which makes the library's iterator stop
        raise UserError(f"{problem()}: {one_line(reason, 400)}{remedy}") from None
    finally:
        log.handlers, log.propagate = before


class ToySource(Source):
    """The built-in toy language; the splits differ in their seed."""

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256(f"{split} {toy.TOKENS[split]}".encode())
        digest.update(Path(toy.__file__).read_bytes())
        return digest.hexdigest()

    def blocks(self, split: str) -> Iterator[str]:
        return rows_to_blocks(toy.split_text(split).lines)


def open_source(data: DataConfig) -> Source:
    """The source that `data.dataset` names: `toy`, a file or folder that exists, else a Hub id.

    Raises:
        UsageError: There is no such file or folder, or which file makes which split is not clear.
    """
    if data.dataset == toy.NAME:
        return ToySource()
    path = user_path(data.dataset)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if path.is_dir():
        return _open_folder(path, data)
    if path.is_file():
        check_form(path)
        return PieceSource(path, data.text_column)
    if path.exists():
        raise UsageError(f"{path} is neither a file nor a folder")
    if is_local(data.dataset):
        raise UsageError(f"{path}: no such file or folder (looked in {Path.cwd()})")
    return HubSource(data.dataset, subset_of(data), data.text_column)


def is_local(dataset: str) -> bool:
    """Whether a `data.dataset` means a file or folder, there or not; else it is `toy` or a Hub id."""
    path = user_path(dataset)
    looks_local = path.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1
    return dataset != toy.NAME and (os.path.lexists(path) or looks_local or form_of(path) is not None or path.suffix.lower() == ".gz")


def dataset_name(dataset: str) -> str:
    """A `data.dataset` without the place that it has on this machine: a file's or folder's own name, else as it is."""
    if not is_local(dataset):
        return dataset
    return Path(os.path.normpath(user_path(dataset).absolute())).name or "data"


def local_files(dataset: str) -> list[Path]:
    """The files that make up a `data.dataset` which lies here, by their names; none where it is on the Hub."""
    place = user_path(dataset)
    below = (file for file in place.rglob("*") if file.parent.name in NAMES or _SPLIT_NAME.match(file.name))
    return [place, *below] if place.exists() else []


def has_own_splits(dataset: str, subset: str | None) -> bool:
    """Whether a `data.dataset` is a folder that has split files of its own, and none of a subset."""
    folder = user_path(dataset)
    return folder.is_dir() and not (subset and (folder / subset).is_dir()) and bool(find_splits(folder))


def subset_of(data: DataConfig) -> str | None:
    """`data.subset`, where null means WikiText-2 for the default data set."""
    return data.subset or (DEFAULT_SUBSET if data.dataset == DEFAULT_DATASET else None)


def _open_folder(folder: Path, data: DataConfig) -> Source:
    """Split files in the folder, in its subset, or in the one folder below it that has them; else what `datasets` makes of it."""
    subset = subset_of(data)
    if subset and (folder / subset).is_dir():
        folder = folder / subset
    files = find_splits(folder)
    # Earlier versions wrote the default's subset into the configuration of every data set.
    if files and subset not in (None, DEFAULT_SUBSET, folder.name):
        raise UsageError(f"{folder} has files of its own and no subset {subset!r}: name no subset")
    if not files and not subset:
        below = {path: found for path in _visible(folder) if path.is_dir() and (found := find_splits(path))}
        if len(below) > 1:
            names = ", ".join(path.name for path in below)
            raise UsageError(f"{folder} holds several subsets, {names}: name the folder of one of them")
        if below:
            ((folder, files),) = below.items()
    if files:
        return FileSource(files, data.text_column, str(folder))
    there = [str(path.relative_to(folder)) for path in _files_below(folder)]
    card = folder / "README.md"
    # What the library makes of other folders is a guess: all their files are train.
    if not any("train" in name.lower() and form_of(Path(name)) for name in there) and not (
        card.is_file() and b"configs:" in card.read_bytes()
    ):
        raise UsageError(
            f"{folder}: no name says which file is which split: call them train.txt, validation.txt and test.txt, or give them folders of "
            f"these names (endings that are read: {ENDINGS}); there is {', '.join(there[:3]) or 'nothing'}{', ...' * (len(there) > 3)}"
        )
    return HubSource(data.dataset, subset, data.text_column)


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Files of each split that a folder has, by their names; numbers in names count by value.

    `train.txt`; `train-00000-of-00002.parquet` and others with numbers; every file in a folder `train`; `wiki.train.tokens`. The other
    splits and forms are named likewise.

    Raises:
        UsageError: Two things claim to be one split, forms are mixed, or a numbered file is missing.
    """
    found: dict[str, dict[str, list[Path]]] = {}  # split -> what claims to be it -> files
    for path in _visible(folder):
        name = path.name.lower()
        if path.is_dir() and name in NAMES:
            if inside := [file for file in _visible(path) if file.is_file() and form_of(file)]:
                found.setdefault(NAMES[name], {})[f"{path.name}/"] = inside
        elif path.is_file() and form_of(path):
            stem, _, ending = name.removesuffix(".gz").rpartition(".")
            if match := _SPLIT_NAME.fullmatch(stem):
                claim = path.name if match["number"] is None else f"{match['name']}-*.{ending}"
                found.setdefault(NAMES[match["name"]], {}).setdefault(claim, []).append(path)
    for split, claims in found.items():
        if len(claims) > 1:
            raise UsageError(f"{folder}: {' and '.join(claims)} claim to be split {split!r}: keep one of them")
    splits = {split: files for split in SPLITS if split in found for files in found[split].values()}
    forms = {form_of(path): path for files in splits.values() for path in files}
    if len(forms) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in forms.values())
        raise UsageError(f"{folder} mixes forms, {names}: keep the files of one form")
    for files in splits.values():
        match = _SPLIT_NAME.fullmatch(files[0].name.lower().removesuffix(".gz").rpartition(".")[0])
        if match and match["of"] and len(files) != int(match["of"]):
            raise UsageError(f"{folder}: {files[0].name} is one of {int(match['of'])} files, but {len(files)} are there")
    return splits


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, numbers in names by value. A name that begins with a dot is no text's: `._a.txt` is made by macOS."""

    def by_numbers(path: Path) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=by_numbers)


def _files_below(folder: Path) -> list[Path]:
    """Files in a folder and in those below it, hidden ones left out."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _file_hash(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
