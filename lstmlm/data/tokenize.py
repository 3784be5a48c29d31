"""Text to tokens and back: words between white space, or characters.

Text is one thing everywhere (`plain`): `\\r\\n`, `\\r` and `\\n` end a line, and a byte-order mark at its start is dropped. Every line
end is the token `<eos>`. Nothing else ends a line. At word level all Unicode white space (form feed, U+0085, U+2028 and the no-break
space too) stands between words, and a NUL is part of a word; at character level each of them is a character like any other.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UNK, EOS = "<unk>", "<eos>"


def plain(text: str) -> str:
    """A text without a byte-order mark at its start, every line end as `\\n`."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


class Tokenizer(Protocol):
    """What a token is. Each method takes plain text, in which `\\n` becomes `<eos>`."""

    def tokenize(self, text: str) -> Sequence[str]:
        """Tokens of a text."""

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        """The same, for much text: distinct tokens by first appearance, and for each token (n,) its place among them."""

    def join(self, tokens: Sequence[str]) -> str:
        """Text of the tokens of one line."""


class Words:
    """A token stands between white space."""

    def tokenize(self, text: str) -> Sequence[str]:
        """As `Tokenizer`."""
        return text.replace("\n", f" {EOS} ").split()

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        """As `Tokenizer`; Arrow's idea of white space is Python's."""
        import pyarrow.compute

        spaced = text.replace("\n", f" {EOS} ").strip()  # at an end, Arrow finds an empty word beside white space
        return _tally(pyarrow.compute.utf8_split_whitespace(pyarrow.array([spaced])).values if spaced else [])

    def join(self, tokens: Sequence[str]) -> str:
        """As `Tokenizer`."""
        return " ".join(tokens)


class Characters:
    """A token is a character: a Unicode code point."""

    def tokenize(self, text: str) -> Sequence[str]:
        """As `Tokenizer`."""
        return [EOS if character == "\n" else character for character in text]

    def tally(self, text: str) -> tuple[list[str], NDArray[np.int32]]:
        """As `Tokenizer`."""
        codes, places = _tally(np.frombuffer(text.encode("utf-32-le"), np.uint32))
        return [EOS if code == ord("\n") else chr(code) for code in codes], places

    def join(self, tokens: Sequence[str]) -> str:
        """As `Tokenizer`."""
        return "".join(tokens)


def tokenizer_of(level: str) -> Tokenizer:
    """The tokenizer of a level.

    Args:
        level: `word` or `char`.
    """
    levels: dict[str, type[Tokenizer]] = {"word": Words, "char": Characters}
    return levels[level]()


def _tally(values: object) -> tuple[list, NDArray[np.int32]]:
    import pyarrow

    encoded = pyarrow.array(values).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
