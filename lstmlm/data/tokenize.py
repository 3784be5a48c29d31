"""Text to tokens and back: words between white space, words and marks by the rules of Moses, characters, or subwords.

Text is one thing everywhere (`plain`): `\\r\\n`, `\\r` and `\\n` end a line. Every line end is the token `<eos>`. Nothing else ends a line.
At word level all Unicode white space (form feed, U+0085, U+2028 and the no-break space too) stands between words, and a NUL is part of
a word (Moses drops it); elsewhere each is a character like any other.
"""

import json
import os
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lstmlm.console import UserError, need

UNK, EOS = "<unk>", "<eos>"
MARKS = ("@-@", "@,@", "@.@")  # WikiText's words for what stands within a word or a number: two @-@ way, 1 @,@ 000, 3 @.@ 5


def plain(text: str) -> str:
    """A text with every line end as `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Where a line may be cut: no rule of any tokenizer here, nor of Unicode's lower case or NFC, looks across a space between two letters or
# digits. A line's tokens are those of its pieces, each cut before the space.
CUT = re.compile(r"(?<=[^\W_]) (?=[^\W_])")


class Tokenizer(Protocol):
    """What a token is. Each method takes plain text, in which `\\n` becomes `<eos>`."""

    def tokenize(self, text: str) -> Sequence[str]:
        """Tokens of a text."""

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        """The same, for much text: distinct tokens by first appearance, and for each token (n,) its place among them."""
        return _tally(self.tokenize(text))

    def join(self, tokens: Sequence[str]) -> str:
        """Text of the tokens of one line."""


class Words(Tokenizer):
    """A token stands between white space."""

    def tokenize(self, text: str) -> Sequence[str]:
        return text.replace("\n", f" {EOS} ").split()

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        import pyarrow.compute  # whose idea of white space is Python's

        spaced = text.replace("\n", f" {EOS} ").strip()  # at an end, Arrow finds an empty word beside white space
        return _tally(pyarrow.compute.utf8_split_whitespace(pyarrow.array([spaced])).values if spaced else [])

    def join(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens)


class Characters(Tokenizer):
    """A token is a character: a Unicode code point."""

    def tokenize(self, text: str) -> Sequence[str]:
        return [EOS if character == "\n" else character for character in text]

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        codes, places = _tally(np.frombuffer(text.encode("utf-32-le"), np.uint32))
        return [EOS if code == ord("\n") else chr(code) for code in codes], places

    def join(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)


class Moses(Tokenizer):
    """A token is a word or a punctuation mark, by the English rules of Moses (Koehn et al., 2007), as WikiText was cut.

    Args:
        marks: Which of WikiText's marks are used. Without its mark, a word or number stays whole.
    """

    def __init__(self, marks: Container[str] = MARKS) -> None:
        need("cutting raw text into words", "moses", "sacremoses")
        import sacremoses

        self._tokenizer = sacremoses.MosesTokenizer("en")
        self._detokenizer = sacremoses.MosesDetokenizer("en")
        self._hyphens = MARKS[0] in marks
        self._within_numbers = re.compile("|".join(f"(?<=\\d){re.escape(mark[1])}(?=\\d)" for mark in MARKS[1:] if mark in marks) or "(?!)")
        self._whole = [re.escape(token) for token in (UNK, EOS, *MARKS)]

    def tokenize(self, text: str) -> Sequence[str]:
        lines = ([token for piece in _pieces(line) for token in self._piece(piece)] for line in text.split("\n"))
        return _by_lines(lines)

    def join(self, tokens: Sequence[str]) -> str:
        """No space before a full stop, `@-@` and its like as they were."""
        text = re.sub(r"(?:^| )@([-,.])@(?: |$)", r"\1", " ".join(tokens))
        return self._detokenizer.detokenize(text.split(), unescape=False)

    def _piece(self, text: str) -> list[str]:
        text = self._within_numbers.sub(lambda mark: f" @{mark[0]}@ ", text)
        try:
            return self._tokenizer.tokenize(text, aggressive_dash_splits=self._hyphens, escape=False, protected_patterns=self._whole)
        except (ValueError, AssertionError):  # of several releases of sacremoses
            told = f"more than 1000 of {', '.join((UNK, EOS, *MARKS))} without two plain words in a row between them"
            raise UserError(f"a line has {told}, which Moses cannot cut: it begins with {text[:40]!r}") from None


def _pieces(line: str) -> Iterator[str]:
    """A line in pieces whose tokens are those of the line: Moses takes 1000 words of MARKS and their like at a time."""
    start = 0
    while cut := CUT.search(line, start + 1000):
        yield line[start : cut.start()]
        start = cut.start()
    yield line[start:]


class Subwords(Tokenizer):
    """A token is a piece of a word, by byte-pair encoding (Sennrich et al., 2016) over bytes, so no text is unknown.

    Args:
        tokens: As `train` gives them.
        merges: Pairs that become one token, `left right`, in the order in which they do.
    """

    def __init__(self, tokens: Sequence[str], merges: Sequence[str]) -> None:
        need("data.level bpe", "bpe", "tokenizers")
        import tokenizers as library

        self._tokens = tokens
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        self._bpe = library.Tokenizer(library.models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
        self._bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._bpe.add_special_tokens([UNK, EOS])
        self._decoder = library.decoders.ByteLevel()

    @staticmethod
    def train(texts: Iterable[str], max_size: int, min_count: int) -> tuple[list[str], list[str]]:
        """At most `max_size` tokens of a text that comes in pieces, and the merges of pairs seen `min_count` times or more."""
        need("data.level bpe", "bpe", "tokenizers")
        import tokenizers as library

        bpe = library.Tokenizer(library.models.BPE())
        bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=max_size,
            min_frequency=min_count,
            special_tokens=[UNK, EOS],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # No merge is learned from the letters of a special token.
        lines = (line for text in texts for line in text.replace(UNK, "\n").replace(EOS, "\n").split("\n"))
        bpe.train_from_iterator(lines, trainer)
        model = json.loads(bpe.to_str())["model"]
        return sorted(model["vocab"], key=model["vocab"].__getitem__), [" ".join(pair) for pair in model["merges"]]

    def tokenize(self, text: str) -> Sequence[str]:
        lines = self._bpe.encode_batch_fast(text.split("\n"))  # which leaves out all but the ids
        return _by_lines([self._tokens[i] for i in line.ids] for line in lines)

    def join(self, tokens: Sequence[str]) -> str:
        return self._decoder.decode(list(tokens))


INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphen, zero-width space, word joiner, byte-order mark
CURLY = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def prepared(text: str, lowercase: bool, normalize: bool, quotes: dict[int, int] | None = None) -> str:
    """A text as `data.normalize` and `data.lowercase` change it, in this order; then those of its quotes that `quotes` has."""
    if normalize and not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(INVISIBLE))
    text = text.lower() if lowercase else text
    return text.translate(quotes) if quotes else text


ALONE = 8  # blocks of a million characters, below which other processes are not worth their start


def tallies(
    tokenizer: Tokenizer, texts: Iterable[str], processes: int, prepare: Callable[[str], str]
) -> Iterator[tuple[str, list[str], NDArray[np.int32]]]:
    """Each block of a text, as it was, with the tally of what `prepare` makes of it; in order.

    Processes share the work of Moses, the slow one. They are started afresh, so this process may have threads and use a GPU.
    """

    def tally(text: str) -> tuple[list[str], NDArray[np.int32]]:
        return tokenizer.tally(prepare(text))

    rest = iter(texts)
    first = list(islice(rest, ALONE)) if processes > 1 and isinstance(tokenizer, Moses) else []
    texts = chain(first, rest)
    if len(first) < ALONE:
        yield from ((text, *tally(text)) for text in texts)
        return
    import joblib

    # Windows of few texts bound the memory. The processes end some seconds after the last, or when this one ends.
    alive = {"idle_worker_timeout": 5, "initializer": _end_with, "initargs": (os.getpid(),)}
    with joblib.Parallel(processes, backend="loky", batch_size=1, **alive) as parallel:
        while window := list(islice(texts, 4 * processes)):
            found = parallel(joblib.delayed(tally)(text) for text in window)
            yield from ((text, *tallied) for text, tallied in zip(window, found, strict=True))


def _end_with(parent: int) -> None:
    """End this process soon after its parent, even one that was killed."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _by_lines(lines: Iterable[Sequence[str]]) -> list[str]:
    tokens = [token for line in lines for token in (*line, EOS)]
    return tokens[:-1]  # nothing ends the last line


def _tally(values: object) -> tuple[list, NDArray[np.int32]]:
    import pyarrow

    encoded = pyarrow.array(values).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
