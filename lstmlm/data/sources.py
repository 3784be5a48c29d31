"""Which text makes which split: files of several forms, a data set in the Hub's layout or on the Hub, or the toy language."""

import hashlib
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lstmlm.config import DataConfig
from lstmlm.console import UsageError, UserError, one_line
from lstmlm.data import toy
from lstmlm.data.reading import check_column, form_of, read_blocks, row_text, rows_to_blocks, units
from lstmlm.files import user_path

SPLITS = ("train", "validation", "test")
DEFAULT_DATASET, DEFAULT_SUBSET = DataConfig.dataset, "wikitext-2-v1"
TOY_TOKENS = {"train": 400_000, "validation": 20_000, "test": 20_000}
NAMES = {  # of files, and the split that each means
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
ENDINGS = ".txt, .csv, .jsonl (also with .gz), .parquet"
_SPLIT_NAME = re.compile(rf"(?:wiki\.)?(?P<name>{'|'.join(NAMES)})(?P<number>[-_.]\d+(?:-of-(?P<of>\d+))?)?")
FAULTS = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    RuntimeError,
    StopIteration,
)  # that the library `datasets` lets through
LEAST_UNITS = 20  # of a single file: its validation and its test split are a twentieth of it each


class Source(Protocol):
    """Where the text of a split comes from."""

    def fingerprint(self, split: str) -> str:
        """A hash of the split's content, cheap next to encoding it, and the same wherever the data lies."""

    def blocks(self, split: str) -> Iterator[str]:
        """The split's plain text, in blocks of bounded size that end after a line end or a space."""


class FileSource:
    """Files that make up the splits, read in the order of their names.

    Args:
        files: The files of each split.
        column: Where the text of a row stands.
        place: The name that the user gave, for messages.
    """

    def __init__(self, files: dict[str, list[Path]], column: str, place: str) -> None:
        self.files, self.column, self.place = files, column, place

    def _files(self, split: str) -> list[Path]:
        if split not in self.files:
            names = " or ".join(f"{name}.txt" for name, meaning in NAMES.items() if meaning == split)
            raise UsageError(
                f"split {split!r} is missing: {self.place} has no {names} (endings that are read: {ENDINGS})"
            )
        return self.files[split]

    def fingerprint(self, split: str) -> str:
        """As `Source`."""
        return " ".join([self.column, *(f"{form_of(path)} {_file_hash(path)}" for path in self._files(split))])

    def blocks(self, split: str) -> Iterator[str]:
        """As `Source`."""
        for path in self._files(split):
            yield from read_blocks(path, self.column)


class PieceSource:
    """One file of n lines (a text) or rows (other forms): the first 9n // 10 train, up to 19n // 20 validate, the rest test.

    Args:
        path: The file.
        column: Where the text of a row stands.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self._units = 0
        self._hash = ""

    def fingerprint(self, split: str) -> str:
        """As `Source`."""
        self._hash = self._hash or _file_hash(self.path)
        return f"90/5/5 {split} {self.column} {form_of(self.path)} {self._hash}"

    def blocks(self, split: str) -> Iterator[str]:
        """As `Source`."""
        n = self._units = self._units or units(self.path, self.column)
        if n < LEAST_UNITS:
            kind = "lines" if form_of(self.path) == "text" else "rows"
            raise UserError(
                f"{self.path} has {n} {kind}, and to be cut into splits it needs {LEAST_UNITS}: give a folder with train.txt, "
                "validation.txt and test.txt instead"
            )
        ends = [0, 9 * n // 10, 19 * n // 20, n]
        piece = SPLITS.index(split)
        return read_blocks(self.path, self.column, ends[piece], ends[piece + 1])


class HubSource:
    """A data set on the Hugging Face Hub, or a folder that only the library `datasets` understands.

    Args:
        dataset: Hub id or folder.
        subset: Its configuration; None where it has only one.
        column: Where the text of a row stands.
    """

    def __init__(self, dataset: str, subset: str | None, column: str) -> None:
        self.dataset, self.subset, self.column = dataset, subset, column
        self._rows: Any = None
        self._fingerprints: dict[str, str] = {}

    def _split(self, split: str) -> Any:
        if self._rows is None:
            self._rows = _load_dataset(self.dataset, self.subset)
        if split not in self._rows:
            remedy = "; name files or folders in it train, validation and test" if is_local(self.dataset) else ""
            raise UsageError(f"data set {self.dataset} has no split {split!r}, only {', '.join(self._rows)}{remedy}")
        return self._rows[split]

    def fingerprint(self, split: str) -> str:
        """As `Source`."""
        if split not in self._fingerprints:
            digest = hashlib.sha256()
            folder = Path(self.dataset).expanduser()
            if folder.is_dir():  # the files themselves: no need to import datasets when the tokens are cached
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    digest.update(f"{path.relative_to(folder)} {_file_hash(path)} ".encode())
            else:
                for block in self.blocks(split):
                    digest.update(block.encode())
            self._fingerprints[split] = digest.hexdigest()
        return f"{split} {self.subset} {self.column} {self._fingerprints[split]}"

    def blocks(self, split: str) -> Iterator[str]:
        """As `Source`."""
        return rows_to_blocks(self._texts(split))

    def _texts(self, split: str) -> Iterator[str]:
        rows, number = self._split(split), 0
        place = f"split {split!r} of {self.dataset}"
        with _by_the_library(lambda: f"cannot read {place} after row {number}"):
            for batch in rows.iter(batch_size=1000):
                check_column(self.column, batch, place)
                for value in batch[self.column]:
                    number += 1
                    yield row_text(value, number, place, self.column)


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
    remedy = "; name a file or folder with --data.dataset, or try the built-in language: --config configs/smoke.yaml"
    with _by_the_library(lambda: f"cannot load {name}, which is no file or folder here", remedy):
        try:
            return datasets.load_dataset(dataset, subset)
        except datasets.exceptions.DatasetNotFoundError:
            raise UsageError(f"--data.dataset {dataset}: no such file or folder, and not on the Hub") from None


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


class ToySource:
    """The built-in toy language; the splits differ in their seed."""

    def fingerprint(self, split: str) -> str:
        """As `Source`."""
        digest = hashlib.sha256(f"{split} {TOY_TOKENS[split]}".encode())
        digest.update(Path(toy.__file__).read_bytes())
        return digest.hexdigest()

    def blocks(self, split: str) -> Iterator[str]:
        """As `Source`."""
        return rows_to_blocks(toy_text(split).lines)


def toy_text(split: str) -> toy.ToyText:
    """A split of the data set `toy` with its probabilities."""
    return toy.generate(TOY_TOKENS[split], seed=SPLITS.index(split))


def open_source(data: DataConfig) -> Source:
    """The source that `data.dataset` names: `toy`, a file or folder that exists, else a Hub id.

    Raises:
        UsageError: There is no such file or folder, or which file makes which split is not clear.
    """
    if data.dataset == "toy":
        return ToySource()
    try:
        path = Path(data.dataset).expanduser()
    except RuntimeError:
        raise UsageError(f"--data.dataset {data.dataset}: there is no such user or no home folder") from None
    try:
        path.lstat()
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except OSError:
        pass  # there is none
    if path.is_dir():
        return _open_folder(path, data)
    if path.is_file():
        if form_of(path) is None:
            raise UsageError(f"--data.dataset {data.dataset}: its name must end with one of {ENDINGS}")
        return PieceSource(path, data.text_column)
    if path.exists():
        raise UsageError(f"--data.dataset {data.dataset} is neither a file nor a folder")
    if is_local(data.dataset):
        raise UsageError(f"--data.dataset {data.dataset}: no such file or folder (looked in {Path.cwd()})")
    return HubSource(data.dataset, subset_of(data), data.text_column)


def is_local(dataset: str) -> bool:
    """Whether a `data.dataset` means a file or folder, there or not; else it is `toy` or a Hub id."""
    path = user_path(dataset)
    looks_local = path.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1
    return dataset != "toy" and (path.exists() or looks_local or form_of(path) is not None or path.suffix == ".gz")


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
        raise UsageError(f"{folder} has no subset {subset!r}: leave --data.subset out")
    if not files and not subset:
        below = {path: found for path in sorted(folder.iterdir()) if path.is_dir() and (found := find_splits(path))}
        if len(below) > 1:
            names = ", ".join(path.name for path in below)
            raise UsageError(f"{folder} holds several subsets: choose with --data.subset, one of {names}")
        if below:
            ((folder, files),) = below.items()
    if files:
        return FileSource(files, data.text_column, str(folder))
    return HubSource(data.dataset, subset, data.text_column)


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Files of each split that a folder has, by their names; numbers in names count by value.

    `train.txt`; `train-00000-of-00002.parquet` and others with numbers; every file in a folder `train`; `wiki.train.tokens`. The other
    splits and forms are named likewise.

    Raises:
        UsageError: Two things claim to be one split, forms are mixed, or a numbered file is missing.
    """
    found: dict[str, dict[str, list[Path]]] = {}  # split -> what claims to be it -> files
    for path in sorted(folder.iterdir(), key=_by_numbers):
        if path.is_dir() and path.name in NAMES:
            inside = [file for file in sorted(path.iterdir(), key=_by_numbers) if file.is_file() and form_of(file)]
            if inside:
                found.setdefault(NAMES[path.name], {})[f"{path.name}/"] = inside
        elif path.is_file() and form_of(path):
            stem, _, ending = path.name.removesuffix(".gz").rpartition(".")
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
        stem = files[0].name.removesuffix(".gz").rpartition(".")[0]
        of = (_SPLIT_NAME.fullmatch(stem) or {"of": None})["of"]
        if of and len(files) != int(of):
            raise UsageError(f"{folder}: {files[0].name} is one of {int(of)} files, but {len(files)} are there")
    return splits


def _by_numbers(path: Path) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
