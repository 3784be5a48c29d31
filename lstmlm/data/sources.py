"""Which text makes which split: files of several forms, a data set in the Hub's layout or on the Hub, or the toy language."""

import errno
import hashlib
import logging
import os
import re
import tempfile
from abc import abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Protocol

from lstmlm.config import DataConfig
from lstmlm.console import UsageError, UserError, check, one_line
from lstmlm.data import toy
from lstmlm.data.reading import ENDINGS, FAULTS, check_column, check_form, form_of, read_blocks, row_text, rows_of, rows_to_blocks
from lstmlm.files import open_file, user_path

SPLITS = ("train", "validation", "test")
DEFAULT_DATASET, DEFAULT_SUBSET = DataConfig.dataset, "wikitext-2-v1"
# Names of files, and the split that each means
NAMES = {"train": "train", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"), "test": "test"}
_SPLIT_NAME = rf"(?:wiki\.)?(?P<name>{'|'.join(NAMES)})(?P<number>[-_.]\d+(?:-of-(?P<of>\d+))?)?"
_OTHERS_NAME = rf"(.+[-_. ])?{_SPLIT_NAME}"  # as of ptb.train.txt
LEAST_ROWS = 20  # of what is cut into splits, some of which are a twentieth of it; the rows of a plain text are its lines


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
    """A folder whose files say with their names which split they are; they are read in the order of their names."""

    name: str  # as the user gave it, for messages
    column: str  # where the text of a row stands
    files: dict[str, list[Path]]  # of each split

    def _files(self, split: str) -> list[Path]:
        names = " or ".join(f"{name}.txt" for name, meaning in NAMES.items() if meaning == split)
        check(split in self.files, f"split {split!r} is missing: {self.name} has no {names} (endings that are read: {ENDINGS})")
        return self.files[split]

    def fingerprint(self, split: str) -> str:
        return " ".join([self.column, *(f"{form_of(path)} {_file_hash(path)}" for path in self._files(split))])

    def blocks(self, split: str) -> Iterator[str]:
        for path in self._files(split):
            yield from read_blocks(path, self.column)


@dataclass
class CutSource(Source):
    """A data set that may lack splits: each that it lacks is a twentieth of its train, cut from the end."""

    name: str  # as the user gave it, for messages
    column: str  # where the text of a row stands

    @abstractmethod
    def own(self) -> Collection[str]:
        """Names of the splits that the data set has, of which NAMES says what they mean."""

    @abstractmethod
    def rows(self, name: str) -> Iterator[str]:
        """The text of each row of such a split."""

    @cached_property
    def _train_rows(self) -> int:
        return sum(1 for _ in self.rows("train"))

    def _place(self, split: str) -> tuple[str, int, int | None]:
        """Where the split stands: the data set's own split, and the first and the end row of it; None = all."""
        own = {NAMES[name]: name for name in reversed(NAMES) if name in self.own()}
        absent = [name for name in SPLITS if name not in own]
        if split in own and not (split == "train" and absent):
            return own[split], 0, None
        check("train" in own, f"{self.name} has no split {split!r}, only {', '.join(self.own())}")
        n = self._train_rows
        if n < LEAST_ROWS:
            told = f"{n} lines or rows to train on, of which {' and '.join(absent)} cannot be cut, which needs {LEAST_ROWS}"
            remedy = "put each sentence or paragraph on a line of its own, or give a folder with train.txt, validation.txt and test.txt"
            raise UserError(f"{self.name} has {told}: {remedy}")
        bounds = [0, *(n * twentieths // 20 for twentieths in range(20 - len(absent), 21))]
        place = ["train", *absent].index(split)
        return "train", bounds[place], bounds[place + 1]

    def blocks(self, split: str) -> Iterator[str]:
        name, first, end = self._place(split)
        return rows_to_blocks(islice(self.rows(name), first, end))

    def part(self, split: str) -> str:
        name, first, end = self._place(split)
        if end is not None:
            return f"lines or rows {first + 1:,} to {end:,} of {self._train_rows:,}"
        return f"the data set's split {name}" if name != split else ""


@dataclass
class PieceSource(CutSource):
    """One file, all of it train; or the files of a folder whose card, or names such as `ptb.train.txt`, say which split they are."""

    files: dict[str, list[Path]]  # of each split that the data set has

    @cached_property
    def _hash(self) -> str:
        return " ".join(f"{name} {form_of(path)} {_file_hash(path)}" for name, paths in self.files.items() for path in paths)

    def own(self) -> Collection[str]:
        return self.files

    def fingerprint(self, split: str) -> str:
        return f"{split} {self.column} {self._hash}"

    def rows(self, name: str) -> Iterator[str]:
        for path in self.files[name]:
            yield from (text for text, _ in rows_of(path, self.column))


@dataclass
class HubSource(CutSource):
    """A data set on the Hugging Face Hub."""

    subset: str | None  # its configuration; None where it has only one

    @cached_property
    def _splits(self) -> Any:
        return _load_dataset(self.name, self.subset)

    def own(self) -> Collection[str]:
        return self._splits

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256()
        for block in self.blocks(split):
            digest.update(block.encode())
        return f"{split} {self.subset} {self.column} {digest.hexdigest()}"

    def rows(self, name: str) -> Iterator[str]:
        split, numbers, place = self._splits[name], count(1), f"split {name!r} of {self.name}"
        check_column(self.column, split.column_names, place)
        for batch in split.select_columns([self.column]).iter(batch_size=1000):  # no other one is decoded
            for value in batch[self.column]:
                yield row_text(value, next(numbers), place, self.column)


def _load_dataset(dataset: str, subset: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are told below
    try:
        try:
            return datasets.load_dataset(dataset, subset)
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
    except datasets.exceptions.DatasetNotFoundError:
        raise UsageError(f"{dataset}: no such file or folder, and not on the Hub") from None
    except (*FAULTS, datasets.exceptions.DatasetsError) as error:
        name = f"data set {dataset}" + (f" (subset {subset})" if subset else "")
        reason = one_line(": ".join(str(each) for each in (error, error.__cause__) if each), 400)
        other = f"the option dataset takes a file, a folder or {toy.NAME} too"
        raise UserError(f"cannot load {name}, which is no file or folder here: {reason}; {other}") from None


class ToySource(Source):
    """The built-in toy language; the splits differ in their seed."""

    def fingerprint(self, split: str) -> str:
        return f"{split} {toy.TOKENS[split]} {_file_hash(Path(toy.__file__))}"

    def blocks(self, split: str) -> Iterator[str]:
        return rows_to_blocks(toy.split_text(split).lines)


def open_source(data: DataConfig) -> Source:
    """The source that `data.dataset` names: `toy`, a file or folder that exists, else a Hub id. What is not clear is a UsageError."""
    if data.dataset == toy.NAME:
        return ToySource()
    path = user_path(data.dataset)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # it may be on the Hub
        pass
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if path.is_dir():
        return _open_folder(path, data)
    if path.is_file():
        check_form(path)
        return PieceSource(str(path), data.text_column, {"train": [path]})
    check(not path.exists(), f"{path} is neither a file nor a folder")
    if is_local(data.dataset):
        raise UsageError(f"{path}: no such file or folder (looked in {Path.cwd()})")
    return HubSource(data.dataset, data.text_column, subset_of(data))


def is_local(dataset: str) -> bool:
    """Whether a `data.dataset` means a file or folder, there or not; else it is `toy` or a Hub id."""
    path = user_path(dataset)
    looks_local = path.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1
    return dataset != toy.NAME and (os.path.lexists(path) or looks_local or form_of(path) is not None or path.suffix.lower() == ".gz")


def dataset_name(dataset: str) -> str:
    """A `data.dataset` without the place that it has on this machine: a file's or folder's own name, else as it is."""
    if not is_local(dataset):
        return dataset
    name = Path(os.path.normpath(user_path(dataset).absolute())).name
    return name if name not in ("", toy.NAME) else "data"


def local_files(data: DataConfig) -> list[Path]:
    """The files that make up a data set which lies here; none where it is on the Hub."""
    source = open_source(data)
    return [*chain(*source.files.values())] if isinstance(source, FileSource | PieceSource) else []


def subset_in(dataset: str, data: DataConfig) -> str | None:
    """`data.subset`, if `dataset` has a subset of that name or is a copy of `data.dataset`; else None."""
    folder, card = user_path(dataset), user_path(dataset) / "README.md"
    if data.subset is None or (folder / data.subset).is_dir() or (card.is_file() and data.subset.encode() in card.read_bytes()):
        return data.subset
    copy = folder.name == Path(data.dataset).name and not (folder.is_dir() and find_splits(folder))
    return data.subset if copy else None


def subset_of(data: DataConfig) -> str | None:
    """`data.subset`, where null means WikiText-2 for the default data set."""
    return data.subset or (DEFAULT_SUBSET if data.dataset == DEFAULT_DATASET else None)


def _open_folder(folder: Path, data: DataConfig) -> Source:
    """Split files in the folder, in its subset, or in the one folder below it that has them; else what its card says, else other names."""
    subset, whole = subset_of(data), folder
    if subset and (folder / subset).is_dir():
        folder = folder / subset
    files = find_splits(folder)
    if not files and not subset:
        below = {path: found for path in _visible(folder) if path.is_dir() and (found := find_splits(path))}
        names = ", ".join(path.name for path in below)
        check(len(below) <= 1, f"{folder} holds several subsets, {names}: name one of them with data.subset")
        if below:
            ((folder, files),) = below.items()
    remedy = "call its files train.txt, validation.txt and test.txt, or put them into folders train/, validation/ and test/, "
    remedy += f"or join them to one file, which is then cut in three (endings that are read: {ENDINGS})"
    card = whole / "README.md"
    if not files and card.is_file() and b"configs:" in card.read_bytes():
        return PieceSource(str(whole), data.text_column, _found_by_card(whole, subset, remedy))
    others = {} if files else find_splits(folder, _OTHERS_NAME)
    check(bool(files or others), f"{folder}: no file's name and ending say which split it is: {remedy}")
    # Earlier versions wrote the default's subset into the configuration of every data set.
    check(subset in (None, DEFAULT_SUBSET, folder.name), f"{folder} has files of its own and no subset {subset!r}: name no subset")
    return FileSource(str(folder), data.text_column, files) if files else PieceSource(str(folder), data.text_column, others)


def _found_by_card(folder: Path, subset: str | None, remedy: str) -> dict[str, list[Path]]:
    """Files of each split of a folder, as its card (README.md) has them."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of a README.md that is no card
    try:
        with tempfile.TemporaryDirectory() as empty:
            # Absolute: a folder named `csv` or `parquet` is not one of the library's own builders.
            found = datasets.load_dataset_builder(str(folder.absolute()), subset, cache_dir=empty).config.data_files
    except Exception as error:  # of the library, and of what reads a card or an archive for it
        raise UsageError(f"{folder}: {one_line(error)}: {remedy}, or name a subset of its card (data.subset)") from None
    files = {str(name): [Path(path) for path in paths] for name, paths in found.items()}
    for path in chain(*files.values()):
        # Links within the folder are not followed: the Hub's cache has some.
        inside = any(Path(os.path.normpath(path)).is_relative_to(place) for place in (folder, folder.absolute(), folder.resolve()))
        check(inside, f"{folder}: its card names {path}, which is not in the folder")
        check_form(path)
    return files


def find_splits(folder: Path, pattern: str = _SPLIT_NAME) -> dict[str, list[Path]]:
    """Files of each split that a folder has, by their names, which `pattern` fits without the ending; numbers in names count by value.

    `train.txt`; `train-00000-of-00002.parquet` and others with numbers; every file in a folder `train`; `wiki.train.tokens`. The other
    splits and forms are named likewise. Two things that claim to be one split, mixed forms, a file beside its packed one, or
    another number of files than `-of-00002` says are a UsageError.
    """
    found: dict[str, dict[str, list[Path]]] = {}  # split -> what claims to be it -> files
    for path in _visible(folder):
        if path.is_dir() and path.name.lower() in NAMES:
            name, claim = path.name.lower(), f"{path.name}/"
            files = [file for file in _visible(path) if file.is_file() and form_of(file)]
        elif path.is_file() and form_of(path) and (match := _match(path, pattern)):
            claim = f"{match.string[: match.start('number')]}-*" if match["number"] else path.name
            name, files = match["name"], [path]
        else:
            continue
        if files:
            found.setdefault(NAMES[name], {}).setdefault(claim, []).extend(files)
    for split, claims in found.items():
        check(len(claims) <= 1, f"{folder}: {' and '.join(claims)} claim to be split {split!r}: keep one of them")
    splits = {split: files for split in SPLITS if split in found for files in found[split].values()}
    forms = {form_of(path): path for files in splits.values() for path in files}
    names = " and ".join(str(path.relative_to(folder)) for path in forms.values())
    check(len(forms) <= 1, f"{folder} mixes forms, {names}: keep the files of one form")
    for first, *others in splits.values():
        by_name = {path.name.lower(): path.name for path in (first, *others)}
        for packed in (name for name in by_name if name.endswith(".gz") and name.removesuffix(".gz") in by_name):
            raise UsageError(f"{folder}: {by_name[packed]} may be {by_name[packed.removesuffix('.gz')]} once more: keep one of them")
        if (match := _match(first, pattern)) and match["of"] and int(match["of"]) != 1 + len(others):
            raise UsageError(f"{folder}: {first.name} is one of {int(match['of'])} files, but {1 + len(others)} are there")
    return splits


def _match(path: Path, pattern: str) -> re.Match[str] | None:
    """What a file's name says of its split."""
    return re.fullmatch(pattern, path.name.lower().removesuffix(".gz").rpartition(".")[0])


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, numbers in names by value. A name that begins with a dot is no text's: `._a.txt` is made by macOS."""

    def by_numbers(path: Path) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=by_numbers)


def _file_hash(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
