"""A data set as token ids, cached on disk and memory-mapped.

The cache holds two kinds of files, `<key>.vocab.json` and `<key>.tokens`. A key is a hash of all that the file was made from. A file of
tokens is

    int32 ids | facts as JSON | length of the facts, int32 | SHA-256 of all before

so it is complete and undamaged exactly when the hash matches.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstmlm.config import DataConfig
from lstmlm.console import UserError, reading_bar
from lstmlm.data.sources import SPLITS, HubSource, Source, open_source
from lstmlm.data.tokenize import EOS, UNK, Words
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.files import cannot_write, locked, open_file, replacing, user_path

logger = logging.getLogger(__name__)
T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size
FORMAT = 4  # of the cache
MANY_UNKNOWN = 0.3  # share of <unk> from which on a text seems not to be cut into words


@dataclass(frozen=True)
class SplitFacts:
    """Numbers of a split."""

    lines: int  # of the text
    words: int  # between white space, and the line ends
    characters: int  # of the text, line ends counted
    tokens: int  # n, length of the stream
    unknown: int  # tokens that are `<unk>`
    once: int  # types that occur only once in the split
    longest: int  # tokens of the longest line, its `<eos>` counted
    written_eos: int  # `<eos>` that stand in the text itself
    part: str  # which part of the data set the split is, where the data set does not say it itself


@dataclass(frozen=True)
class Corpus:
    """A data set as token ids."""

    vocabulary: Vocabulary  # built from the training split alone, unless another was given
    splits: dict[str, Tensor]  # stream of each split, int32 (n,), memory-mapped
    facts: dict[str, SplitFacts]  # numbers of each split
    fingerprint: str  # a hash of the vocabulary and of every token

    def lines(self) -> list[str]:
        """A line for each split with its numbers, to be shown before training."""
        told = []
        for split, facts in self.facts.items():
            line = f"{split}: {facts.lines:,} lines, {facts.tokens:,} tokens, {facts.unknown / facts.tokens:.2%} {UNK}"
            if split == "train":
                line += f", {len(self.vocabulary):,} types, {facts.once:,} of them seen once, longest line {facts.longest:,} tokens"
            told.append(f"{line} ({facts.part})" if facts.part else line)
        return told


def load_corpus(data: DataConfig, vocabulary: Vocabulary | None = None, processes: int = 1) -> Corpus:
    """Vocabulary and token ids of all three splits, from the cache where it has them.

    Args:
        data: Which text, and how it is cut.
        vocabulary: Takes the place of the training split's own. It says how the text is cut, whatever `data` says.
        processes: That share a slow tokenizer's work on a long text.

    Raises:
        UserError: The data cannot be read, a split is missing or empty, a file is not UTF-8, the vocabulary has `<unk>` and `<eos>`
            alone, or the cache has no room.
    """
    source, made = open_source(data), vocabulary is None
    keys = {split: source.fingerprint(split) for split in SPLITS}
    if vocabulary is None:
        rules = (data.level, data.min_count, data.max_size, data.tokenizer, data.lowercase, data.normalize)

        def write(file: BinaryIO) -> None:
            blocks = reading_bar("reading split train", source.blocks("train"))
            file.write(Vocabulary.build(blocks, *rules, processes).to_bytes())
            _refuse_changed(data, "train", keys["train"])

        vocabulary = _cached(data, ".vocab.json", ("vocabulary", FORMAT, keys["train"], *rules), Vocabulary.load, write)
    splits, facts = dict[str, Tensor](), dict[str, SplitFacts]()
    for split, key in keys.items():
        splits[split], facts[split] = _load_split(data, split, vocabulary, processes, source, key)
    if len(vocabulary) <= 2:
        rare = f"no token of the training split of {data.dataset} occurs {data.min_count} times (data.min_count)"
        raise UserError(f"the vocabulary has only {UNK} and {EOS}, so there is nothing to learn: {rare}")
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for stream in splits.values():
        digest.update(stream.numpy().data)
    _warn(facts, data, made)
    return Corpus(vocabulary, splits, facts, digest.hexdigest())


def fingerprint(stream: Tensor) -> str:
    """A hash of the tokens of a stream, int32 (n,)."""
    return hashlib.sha256(stream.numpy().data).hexdigest()


def load_split(data: DataConfig, split: str, vocabulary: Vocabulary, processes: int = 1) -> tuple[Tensor, SplitFacts]:
    """Token ids of one split under a given vocabulary, int32 (n,), memory-mapped; and its numbers. Errors are those of `load_corpus`."""
    source = open_source(data)
    return _load_split(data, split, vocabulary, processes, source, source.fingerprint(split))


def _load_split(
    data: DataConfig, split: str, vocabulary: Vocabulary, processes: int, source: Source, key: str
) -> tuple[Tensor, SplitFacts]:
    def write(file: BinaryIO) -> None:
        blocks = reading_bar(f"reading split {split}", source.blocks(split))
        _write_tokens(file, vocabulary, vocabulary.encode_blocks(blocks, processes), source.part(split))
        _refuse_changed(data, split, key)

    stream, facts = _cached(data, ".tokens", ("tokens", FORMAT, key, split, vocabulary.fingerprint), _map_tokens, write)
    if len(stream) < 2:
        raise UserError(f"split {split!r} of {data.dataset} is empty: it has {len(stream)} tokens, the least is 2")
    return stream, facts


def _refuse_changed(data: DataConfig, split: str, key: str) -> None:
    """Refuse files that are others than when `key` was made of them: what was made now would be found under their name for ever."""
    source = open_source(data)  # a new one: a source may keep its hash
    if not isinstance(source, HubSource) and source.fingerprint(split) != key:
        raise UserError(f"the files of {data.dataset} were changed while split {split!r} was read: start again")


def _warn(facts: dict[str, SplitFacts], data: DataConfig, made: bool) -> None:
    """Warn of what the results alone would not show; `made` says whether the vocabulary is that of the training split."""
    train, shares = facts["train"], {split: each.unknown / each.tokens for split, each in facts.items()}
    if max(shares.values()) > MANY_UNKNOWN and made and data.level == "word" and data.max_size is None:
        told = ", ".join(f"{share:.0%} of split {split}" for split, share in shares.items() if share > MANY_UNKNOWN)
        english = "English as people write it needs --data.tokenizer moses, " * (data.tokenizer == "whitespace")
        logger.warning(
            f"{told} are {UNK}, so a perplexity says little: {english}a language without spaces between words (Chinese, Japanese, Thai) "
            "--data.level char; --data.level bpe --data.max_size 8000 knows every word"
        )
    elif not train.unknown and any(shares.values()):
        told = " and ".join(f"{share:.2%} of split {split}" for split, share in shares.items() if share)
        logger.warning(
            f"{UNK} never occurs in the training split, so the model cannot learn when to expect it, but is {told}: a new vocabulary of "
            f"--data.min_count 2 makes what training has once {UNK}, and one of --data.level bpe --data.max_size 8000 knows every word"
        )
    for split, each in facts.items():
        if each.written_eos:
            logger.warning(f"split {split} has {EOS} in its own text, {each.written_eos:,} times: each is read as a line end")
    if train.tokens < data.batch_size * data.bptt:
        logger.warning(
            f"the training split has {train.tokens:,} tokens, too few for one segment of {data.batch_size:,} columns (data.batch_size) "
            f"x {data.bptt:,} rows (data.bptt)"
        )


def _cached(data: DataConfig, ending: str, parts: Sequence[object], load: Callable[[Path], T], write: Callable[[BinaryIO], object]) -> T:
    """What was made of `parts`, read by `load`. Where its file is absent or damaged, one process of this host writes it first."""
    folder = user_path(data.cache_dir)
    path = folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}{ending}"
    try:
        # A file appears whole, so reading needs no lock, and a read-only cache works.
        with suppress(UserError, ValueError):  # absent or damaged
            return load(path)
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f".{path.name}.lock"  # of each file its own: a long text must not keep other jobs from theirs
        with locked(lock, wait=True), ExitStack() as stack:
            stack.callback(_delete_lock, lock)
            with suppress(UserError, ValueError):  # another process may have written it meanwhile
                return load(path)
            if path.exists():
                logger.warning("%s is damaged; building it again", path)
            with replacing(path) as file:
                write(file)
            return load(path)
    except OSError as error:
        raise UserError(
            f"{cannot_write(error)}; give it room and write permission, or name another folder with the option cache_dir"
        ) from None


def _delete_lock(lock: Path) -> None:
    with suppress(PermissionError):  # another user's, in a folder such as /tmp
        lock.unlink(missing_ok=True)


def _write_tokens(file: BinaryIO, vocabulary: Vocabulary, blocks: Iterable[tuple[str, NDArray[np.int32]]], part: str) -> None:
    digest, counts = hashlib.sha256(), np.zeros(len(vocabulary), np.int64)
    lines = words = characters = longest = 0
    own = vocabulary.level != "word" or vocabulary.tokenizer != "whitespace" or vocabulary.normalize  # tokens other than words
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
    with open_file(path) as file:
        # A private mapping: pages are read when touched and shared between the processes of a host.
        content = np.memmap(file, np.uint8, "c")
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(body.data).digest() != digest.tobytes():
        raise ValueError
    length = len(body) - 4 - int.from_bytes(body[-4:].tobytes(), "little")  # bytes of the ids
    return torch.from_numpy(body[:length].view(np.int32)), SplitFacts(**json.loads(body[length:-4].tobytes()))
