"""Where the lines of a split come from: the Hub, a local folder in Hub layout, text files or the toy language."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from lstmlm.config import DataConfig
from lstmlm.console import UserError
from lstmlm.data import toy

SPLITS = ("train", "validation", "test")
TEXT_NAMES = ("train", "validation", "valid", "test")
TOY_TOKENS = {"train": 400_000, "validation": 20_000, "test": 20_000}


class Source(Protocol):
    """Where the lines of a split come from."""

    def fingerprint(self, split: str) -> str:
        """A hash of the split's content, cheap next to encoding it."""

    def lines(self, split: str) -> Iterator[str]:
        """The split's lines, in order."""


class HubSource:
    """A data set on the Hugging Face Hub, or a local folder laid out like one; rows have a `text` column."""

    def __init__(self, dataset: str, subset: str | None) -> None:
        self.dataset, self.subset = dataset, subset
        self._rows: Any = None
        self._fingerprints: dict[str, str] = {}

    def _split(self, split: str) -> Any:
        if self._rows is None:
            self._rows = _load_dataset(self.dataset, self.subset)
        if split not in self._rows:
            raise UserError(f"data set {self.dataset} has no split {split!r}, only {', '.join(self._rows)}")
        return self._rows[split]

    def fingerprint(self, split: str) -> str:
        folder = Path(self.dataset).expanduser()
        what = "" if folder.is_dir() else split
        if what not in self._fingerprints:
            digest = hashlib.sha256()
            if folder.is_dir():  # the files themselves: no need to import datasets when the tokens are cached
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    digest.update(f"{path.relative_to(folder)} {_file_hash(path)} ".encode())
            else:
                for line in self.lines(split):
                    digest.update(f"{len(line)} {line}".encode())
            self._fingerprints[what] = digest.hexdigest()
        return f"{split} {self.subset} {self._fingerprints[what]}"

    def lines(self, split: str) -> Iterator[str]:
        rows = self._split(split)
        try:
            for batch in rows.iter(batch_size=1000):
                if "text" not in batch:
                    raise UserError(f"data set {self.dataset} has no column 'text', only {', '.join(batch)}")
                yield from batch["text"]
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read split {split!r} of {self.dataset}: {' '.join(str(error).split())[:300]}"
            ) from None


def _load_dataset(dataset: str, subset: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    folder = Path(dataset).expanduser()
    try:
        if folder.is_dir():
            # Not through the library's own cache: it goes by the folder's name and would not notice changed files.
            with tempfile.TemporaryDirectory() as empty:
                return datasets.load_dataset(str(folder), subset, streaming=True, cache_dir=empty)
        return datasets.load_dataset(dataset, subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        if len(reason) > 300:
            reason = f"{reason[:300]}..."
        raise UserError(
            f"cannot load data set {dataset} (subset {subset}): {reason} -- give a local copy with "
            "--data.dataset FOLDER, or try the built-in language with --config configs/smoke.yaml"
        ) from None


class TextSource:
    """A folder with `train.txt`, `valid.txt` or `validation.txt`, and `test.txt`, in UTF-8."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, split: str) -> Path:
        names = ["validation.txt", "valid.txt"] if split == "validation" else [f"{split}.txt"]
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        raise UserError(f"split {split!r} is missing: there is no {' or '.join(names)} in {self.folder}")

    def fingerprint(self, split: str) -> str:
        return _file_hash(self._path(split))

    def lines(self, split: str) -> Iterator[str]:
        path, offset = self._path(split), 0
        try:
            with path.open("rb") as file:
                for raw in file:
                    yield raw.decode().rstrip("\r\n")
                    offset += len(raw)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 at byte {offset + error.start}: convert it first") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None


class ToySource:
    """The built-in toy language; the splits differ in their seed."""

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256(f"{split} {TOY_TOKENS[split]}".encode())
        digest.update(Path(toy.__file__).read_bytes())
        return digest.hexdigest()

    def lines(self, split: str) -> Iterator[str]:
        yield from toy_text(split).lines


def toy_text(split: str) -> toy.ToyText:
    """A split of the data set `toy` with its probabilities."""
    return toy.generate(TOY_TOKENS[split], seed=SPLITS.index(split))


def open_source(data: DataConfig) -> Source:
    """The source that `data.dataset` names: `toy`, a folder that exists, else a Hub id."""
    if data.dataset == "toy":
        return ToySource()
    folder = Path(data.dataset).expanduser()
    if folder.is_dir():
        # Hub layout keeps its files in folders named by the subset; text files stand in the folder itself.
        return (
            TextSource(folder)
            if any((folder / f"{name}.txt").is_file() for name in TEXT_NAMES)
            else HubSource(data.dataset, data.subset)
        )
    if folder.is_absolute() or data.dataset.startswith((".", "~")) or data.dataset.count("/") > 1:
        raise UserError(f"--data.dataset {data.dataset}: there is no such folder")
    return HubSource(data.dataset, data.subset)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
