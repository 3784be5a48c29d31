"""A data set as token ids, cached on disk and memory-mapped.

The cache holds two kinds of files, each named by a hash of all it was made from: `<key>.vocab.json` and `<key>.tokens`
(int32 ids followed by their SHA-256, so a file is complete and undamaged exactly when the hash matches).
"""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lstmlm.config import DataConfig
from lstmlm.console import UserError
from lstmlm.data.sources import SPLITS, Source, open_source
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import cannot_write, locked

logger = logging.getLogger(__name__)
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


def _cached(path: Path, load: Callable[[Path], T], write: Callable[[Path], object]) -> T:
    """`load(path)`, written first by one process of this host where it is absent or damaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / "lock", wait=True):
            if path.exists():
                try:
                    return load(path)
                except UserError:
                    logger.warning("%s is damaged; building it again", path)
            temporary = path.with_suffix(".tmp")
            try:
                write(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return load(path)
    except OSError as error:
        raise UserError(f"{cannot_write(error)}; another place: --data.cache_dir FOLDER") from None


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
