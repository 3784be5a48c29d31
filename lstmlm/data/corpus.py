"""A data set as token ids, cached on disk and memory-mapped.

The cache holds two kinds of files, `<key>.vocab.json` and `<key>.tokens`. A key is a hash of all that the file was made from. A file of
tokens is

    int32 ids | facts as JSON | length of the facts, int32 | SHA-256 of all before

so it is complete and undamaged exactly when the hash matches.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstmlm.config import DataConfig
from lstmlm.console import UserError
from lstmlm.data.sources import SPLITS, Source, open_source
from lstmlm.data.tokenize import EOS, UNK, Words
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import cannot_write, locked, open_file, replacing, user_path

logger = logging.getLogger(__name__)
T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size
FORMAT = 3  # of the cache


@dataclass(frozen=True)
class SplitFacts:
    """Numbers of a split.

    Attributes:
        lines: Lines of the text.
        words: Words between white space, and the line ends.
        characters: Characters of the text, line ends counted.
        tokens: n, length of the stream.
        unknown: Tokens that are `<unk>`.
        once: Types that occur only once in the split.
        longest: Tokens of the longest line, its `<eos>` counted.
        written_eos: `<eos>` that stand in the text itself.
        part: Which part of the data set the split is, where the data set does not say it itself.
    """

    lines: int
    words: int
    characters: int
    tokens: int
    unknown: int
    once: int
    longest: int
    written_eos: int
    part: str


@dataclass(frozen=True)
class Corpus:
    """A data set as token ids.

    Attributes:
        vocabulary: Built from the training split alone, unless another was given.
        splits: Stream of each split, int32 (n,), memory-mapped.
        facts: Numbers of each split.
        fingerprint: A hash of the vocabulary and of every token.
    """

    vocabulary: Vocabulary
    splits: dict[str, Tensor]
    facts: dict[str, SplitFacts]
    fingerprint: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of the tokens of each split."""
        return {split: fingerprint(stream) for split, stream in self.splits.items()}

    def lines(self) -> list[str]:
        """A line for each split with its numbers, to be shown before training."""
        told = []
        for split, facts in self.facts.items():
            line = f"{split}: {facts.lines:,} lines, {facts.tokens:,} tokens, {facts.unknown / facts.tokens:.2%} {UNK}"
            if split == "train":
                line += f", {len(self.vocabulary):,} types, {facts.once:,} of them seen once, longest line {facts.longest:,} tokens"
            told.append(f"{line} ({facts.part})" if facts.part else line)
        return told


Watch = Callable[[str, Iterator[str]], Iterator[str]]


def unwatched(name: str, blocks: Iterator[str]) -> Iterator[str]:
    """The blocks as they come."""
    return blocks


def load_corpus(data: DataConfig, vocabulary: Vocabulary | None = None, watch: Watch = unwatched, processes: int = 1) -> Corpus:
    """Vocabulary and token ids of all three splits, from the cache where it has them.

    Args:
        data: Which text, and how it is cut.
        vocabulary: Takes the place of the training split's own. It says how the text is cut, whatever `data` says.
        watch: Is called with a line to be shown and the blocks of a split, and gives the blocks on: a progress bar, for example.
        processes: That share a slow tokenizer's work on a long text.

    Raises:
        UserError: The data cannot be read, a split is missing or empty, a file is not UTF-8, the vocabulary has no token of the text, or
            the cache has no room.
    """
    source = open_source(data)
    keys = {split: source.fingerprint(split) for split in SPLITS}
    if vocabulary is None:
        rules = (data.level, data.min_count, data.max_size, data.tokenizer, data.lowercase, data.normalize)

        def write(file: BinaryIO) -> None:
            blocks = watch("reading split train", source.blocks("train"))
            file.write(Vocabulary.build(blocks, *rules, processes).to_bytes())

        vocabulary = _cached(data, ".vocab.json", ("vocabulary", FORMAT, keys["train"], *rules), Vocabulary.load, write)
    loaded = {split: _load_split(data, split, vocabulary, processes, source, key, watch) for split, key in keys.items()}
    if len(vocabulary) <= 2:
        raise UserError(
            f"the vocabulary has only {UNK} and {EOS}, so there is nothing to learn: no token of the training split of {data.dataset} "
            f"occurs {data.min_count} times (data.min_count)"
        )
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for stream, _ in loaded.values():
        digest.update(stream.numpy().data)
    facts = {split: facts for split, (_, facts) in loaded.items()}
    _warn(facts, data)
    return Corpus(vocabulary, {split: stream for split, (stream, _) in loaded.items()}, facts, digest.hexdigest())


def fingerprint(stream: Tensor) -> str:
    """A hash of the tokens of a stream, int32 (n,)."""
    return hashlib.sha256(stream.numpy().data).hexdigest()


def load_split(data: DataConfig, split: str, vocabulary: Vocabulary, processes: int = 1) -> tuple[Tensor, SplitFacts]:
    """Token ids of one split under a given vocabulary, int32 (n,), memory-mapped; and its numbers.

    Raises:
        UserError: As `load_corpus`.
    """
    source = open_source(data)
    return _load_split(data, split, vocabulary, processes, source, source.fingerprint(split), unwatched)


def _load_split(
    data: DataConfig, split: str, vocabulary: Vocabulary, processes: int, source: Source, key: str, watch: Watch
) -> tuple[Tensor, SplitFacts]:
    def write(file: BinaryIO) -> None:
        blocks = watch(f"reading split {split}", source.blocks(split))
        _write_tokens(file, vocabulary, vocabulary.encode_blocks(blocks, processes), source.part(split))

    stream, facts = _cached(data, ".tokens", ("tokens", FORMAT, key, split, vocabulary.fingerprint), _map_tokens, write)
    if len(stream) < 2:
        raise UserError(f"split {split!r} of {data.dataset} is empty: it has {len(stream)} tokens, the least is 2")
    return stream, facts


def _warn(facts: dict[str, SplitFacts], data: DataConfig) -> None:
    """Warn of what the results alone would not show."""
    train = facts["train"]
    unknown = {split: each.unknown / each.tokens for split, each in facts.items() if each.unknown}
    if unknown and not train.unknown:
        logger.warning(
            "%s never occurs in the training split, so the model cannot learn when to expect it, but is %s; "
            "data.min_count 2 turns what training has only once into %s",
            UNK,
            " and ".join(f"{share:.2%} of split {split}" for split, share in unknown.items()),
            UNK,
        )
    for split, each in facts.items():
        if each.written_eos:
            logger.warning("split %s has %s in its own text, %s times: each is read as a line end", split, EOS, f"{each.written_eos:,}")
    if train.tokens < data.batch_size * data.bptt:
        logger.warning(
            "the training split has %s tokens, too few for one segment of %s columns (data.batch_size) x %s rows (data.bptt)",
            *(f"{number:,}" for number in (train.tokens, data.batch_size, data.bptt)),
        )


def _cached(data: DataConfig, ending: str, parts: Sequence[object], load: Callable[[Path], T], write: Callable[[BinaryIO], object]) -> T:
    """What was made of `parts`, read by `load`. Where its file is absent or damaged, one process of this host writes it first."""
    folder = user_path(data.cache_dir)
    path = folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}{ending}"

    def found() -> T | None:
        try:
            return load(path) if path.exists() else None
        except UserError:
            return None

    try:
        # A file appears whole, so reading needs no lock, and a read-only cache works.
        if (content := found()) is not None:
            return content
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", wait=True):
            if (content := found()) is not None:
                return content
            if path.exists():
                logger.warning("%s is damaged; building it again", path)
            with replacing(path) as file:
                write(file)
            return load(path)
    except OSError as error:
        raise UserError(f"{cannot_write(error)}; name another folder with the option cache_dir") from None


def _write_tokens(file: BinaryIO, vocabulary: Vocabulary, blocks: Iterable[tuple[str, NDArray[np.int32]]], part: str) -> None:
    digest, counts = hashlib.sha256(), np.zeros(len(vocabulary), np.int64)
    lines = words = characters = longest = 0
    own = vocabulary.level != "word" or vocabulary.tokenizer != "whitespace"  # whether its tokens are other than words
    begun = 0  # tokens of the line that the next block goes on with

    def put(content: bytes | memoryview) -> None:
        digest.update(content)
        file.write(content)

    for block, ids in blocks:  # ids (n,)
        put(ids.data)
        counts += np.bincount(ids, minlength=len(vocabulary))
        ends = np.flatnonzero(ids == vocabulary.eos)
        longest = max(longest, int(np.diff(ends, prepend=-1 - begun).max(initial=0)))
        begun = len(ids) - 1 - int(ends[-1]) if len(ends) else begun + len(ids)
        lines += block.count("\n")
        characters += len(block)
        words += len(Words().tokenize(block)) if own else len(ids)
    facts = SplitFacts(
        lines=lines,
        words=words,
        characters=characters,
        tokens=int(counts.sum()),
        unknown=int(counts[vocabulary.unk]),
        once=int((counts == 1).sum()),
        longest=longest,
        written_eos=int(counts[vocabulary.eos]) - lines,
        part=part,
    )
    content = json.dumps(asdict(facts)).encode()
    put(content + len(content).to_bytes(4, "little"))
    file.write(digest.digest())


def _map_tokens(path: Path) -> tuple[Tensor, SplitFacts]:
    damaged = UserError(f"{path} is damaged")
    with open_file(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise damaged
        # A private mapping: pages are read when touched and shared between the processes of a host.
        content = np.memmap(file, np.uint8, "c")
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(body.data).digest() != digest.tobytes():
        raise damaged
    length = len(body) - 4 - int.from_bytes(body[-4:].tobytes(), "little")  # bytes of the ids
    stream, facts = torch.from_numpy(body[:length].view(np.int32)), body[length:-4].tobytes()
    return stream, SplitFacts(**json.loads(facts))
