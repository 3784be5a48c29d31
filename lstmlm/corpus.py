"""A data set as token ids: Hub, local Hub layout, text files or the toy language; cached on disk, memory-mapped.

The cache holds two kinds of files, each named by a hash of all it was made from: `<key>.vocab.json` and `<key>.tokens`
(int32 ids followed by their SHA-256, so a file is complete and undamaged exactly when the hash matches).
"""

import fcntl
import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lstmlm import toy
from lstmlm.config import DataConfig, UserError, print_line
from lstmlm.files import cannot_write
from lstmlm.vocabulary import Vocabulary

SPLITS = ("train", "validation", "test")
TEXT_NAMES = ("train", "validation", "valid", "test")
TOY_TOKENS = {"train": 400_000, "validation": 20_000, "test": 20_000}
T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size
_FLUSH = 1 << 20  # token ids held in memory while a split is encoded


@dataclass(frozen=True)
class Corpus:
    """A data set as token ids.

    Attributes:
        vocabulary: Built from the training split alone.
        splits: Stream of each split, int32 (n,), memory-mapped.
        fingerprint: A hash of the vocabulary and of every token.
    """

    vocabulary: Vocabulary
    splits: dict[str, Tensor]
    fingerprint: str


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
                    digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
                    _hash_file(path, digest)
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
        digest = hashlib.sha256()
        _hash_file(self._path(split), digest)
        return digest.hexdigest()

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


def load_corpus(data: DataConfig) -> Corpus:
    """Vocabulary and token ids of all three splits, from the cache where it has them.

    Raises:
        UserError: The data cannot be had, a split is missing or empty, a file is not UTF-8, no room for the cache.
    """
    source = open_source(data)
    cache = Path(data.cache_dir).expanduser()
    key = _key("vocabulary", source.fingerprint("train"), data.level, data.min_count, data.max_size)

    def build() -> bytes:
        return Vocabulary.build(source.lines("train"), data.level, data.min_count, data.max_size).to_bytes()

    vocabulary = _cached(cache / f"{key}.vocab.json", Vocabulary.load, lambda path: path.write_bytes(build()))
    splits = {split: _load_split(source, data, split, vocabulary) for split in SPLITS}
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for stream in splits.values():
        digest.update(stream.numpy().data)
    return Corpus(vocabulary, splits, digest.hexdigest())


def load_split(data: DataConfig, split: str, vocabulary: Vocabulary) -> Tensor:
    """Token ids of one split under a given vocabulary: int32 (n,), memory-mapped.

    Raises:
        UserError: As `load_corpus`.
    """
    return _load_split(open_source(data), data, split, vocabulary)


def _load_split(source: Source, data: DataConfig, split: str, vocabulary: Vocabulary) -> Tensor:
    key = _key("tokens", source.fingerprint(split), split, vocabulary.fingerprint)
    path = Path(data.cache_dir).expanduser() / f"{key}.tokens"
    stream = _cached(path, _map_tokens, lambda path: _write_tokens(path, source.lines(split), vocabulary))
    if len(stream) < 2:
        raise UserError(f"split {split!r} of {data.dataset} is empty: it has {len(stream)} tokens, the least is 2")
    return stream


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _hash_file(path: Path, digest: "hashlib._Hash") -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _cached(path: Path, load: Callable[[Path], T], write: Callable[[Path], object]) -> T:
    """`load(path)`, written first by one process of this host where it is absent or damaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / "lock"):
            if path.exists():
                try:
                    return load(path)
                except UserError:
                    print_line(f"{path} is damaged; building it again")
            temporary = path.with_suffix(".tmp")
            try:
                write(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return load(path)
    except OSError as error:
        raise UserError(f"{cannot_write(error)}; another place: --data.cache_dir FOLDER") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel lets go of the lock when its holder dies, so a killed builder blocks nobody.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_tokens(path: Path, lines: Iterator[str], vocabulary: Vocabulary) -> None:
    digest = hashlib.sha256()
    ids = array("i")
    with path.open("wb") as file:

        def flush() -> None:
            digest.update(ids)
            ids.tofile(file)
            del ids[:]

        for line in lines:
            ids.extend(vocabulary.encode(line))
            if len(ids) >= _FLUSH:
                flush()
        flush()
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())


def _map_tokens(path: Path) -> Tensor:
    length = path.stat().st_size - _DIGEST
    if length < 0 or length % 4:
        raise UserError(f"{path} is damaged")
    # A private mapping: pages are read when touched and shared between the processes of a host.
    stream = torch.empty(0, dtype=torch.int32)
    if length:
        stream = torch.from_file(str(path), shared=False, size=length // 4, dtype=torch.int32)
    with path.open("rb") as file:
        file.seek(length)
        if hashlib.sha256(stream.numpy().data).digest() != file.read():
            raise UserError(f"{path} is damaged")
    return stream
