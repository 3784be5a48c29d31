"""Pieces to words: where each token of a line stands among the words that people see, and what of these a model does not know.

A word stands between white space, punctuation included. White space belongs to the word after it; what stands after the last word
belongs to the line's end.
"""

import logging
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.console import UserError
from lstmlm.data.tokenize import CURLY, INVISIBLE, MARKS, UNK, prepared
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.model.pretrained import SavedModel

logger = logging.getLogger(__name__)

DROPPED = dict.fromkeys(range(32))  # control characters, which Moses leaves out
ODD = re.compile(f"[{''.join(map(chr, (*INVISIBLE, *CURLY)))}\u0300-\u036f]")  # and combining marks
RARE = 1000  # types that are more frequent than a rare one
MANY_UNKNOWN = 0.1  # share of unknown tokens from which on a warning says what helps


class Cut(NamedTuple):
    """A line of a text, cut by a vocabulary."""

    words: list[str]  # as they stood
    texts: list[str]  # of each token, as it stood; bytes of a character that is cut apart are shown as \xe4
    word_of: list[int]  # for each token the place of its word, from 0; len(words) for white space at the line's end
    ids: list[int]  # of the tokens


def cut(line: str, vocabulary: Vocabulary) -> Cut:
    """Cut a line into tokens, and find the word of each.

    Raises:
        UserError: The tokens are not those of the words.
    """
    words, tokens, read = line.split(), vocabulary.tokenize(line), vocabulary.prepare
    ids = [vocabulary.id_of(token) for token in tokens]
    if vocabulary.tokenizer == "moses":
        return Cut(words, *_moses(line, words, [read(word) for word in words], tokens), ids)
    if vocabulary.level == "word":
        word_of = [place for place, word in enumerate(words) if read(word)]
        return Cut(words, [words[place] for place in word_of], word_of, ids)
    # In bytes or characters of the text that was read: where words and tokens end.
    by_bytes = vocabulary.level == "bpe"
    size: Callable[[str], int] = (lambda text: len(text.encode())) if by_bytes else len
    parts = re.findall(r"\s+|\S+", line)
    ends = [end for end, part in zip(accumulate(size(read(part)) for part in parts), parts, strict=True) if part.strip()]
    token_ends = list(accumulate(map(len, tokens)))
    # As it stood, if reading it moved no place; else as it was read.
    text = line if [*map(size, line)] == [*map(size, read(line))] else read(line)
    content = text.encode() if by_bytes else text
    if tokens and token_ends[-1] != len(content):
        raise _apart(line)
    pieces = [content[start:end] for start, end in zip([0, *token_ends], token_ends, strict=False)]
    texts = [piece if isinstance(piece, str) else piece.decode(errors="backslashreplace") for piece in pieces]
    return Cut(words, texts, [bisect_left(ends, end) for end in token_ends], ids)


def _moses(line: str, words: list[str], read: list[str], tokens: Sequence[str]) -> tuple[list[str], list[int]]:
    """Text and word of each token that Moses cut, letter by letter along the words."""
    texts, word_of, place, start = [], [], -1, 0
    rest = ""
    for token in tokens:
        while not rest and place + 1 < len(words):
            place, start = place + 1, 0
            rest = read[place].translate(DROPPED)
        body = token if rest.startswith(token) else token[1:-1] if token in MARKS else token
        if not rest.startswith(body):
            raise _apart(line)
        kept = body == token and len(words[place]) == len(read[place].translate(DROPPED))
        texts.append(words[place][start : start + len(body)] if kept else token)
        word_of.append(place)
        start, rest = start + len(body), rest.removeprefix(body)
    return texts, word_of


def _apart(line: str) -> UserError:
    return UserError(f"the model's tokens of a line do not make up its words, so it has no words to score; leave it out: {line[:60]!r}")


def word_starts(vocabulary: Vocabulary) -> Tensor:
    """Ids of the tokens that can follow a whole word: those that begin with white space, and `<eos>`; int64 (n,)."""
    starts = [i for i in range(len(vocabulary)) if i == vocabulary.eos or vocabulary.decode([i])[:1].isspace()]
    return torch.tensor(starts)


class Unknown:
    """Words of texts that only look like known ones, and the warnings about these and about unknown tokens."""

    def __init__(self, saved: SavedModel) -> None:
        self._vocabulary = saved.text_vocabulary
        self._odd: dict[str, str | None] = {}  # words with ODD characters: the known word that each looks like but is not

    def see(self, text: str) -> None:
        """Remember the words that only look as if they were known."""
        ordered = (self._vocabulary.unk, self._vocabulary.eos) == (0, 1)  # by frequency, as ours are, but not imported ones
        if self._vocabulary.level == "word" and ODD.search(text):
            for word in filter(ODD.search, text.split()):
                if word not in self._odd:
                    ordinary = prepared(word, lowercase=False, normalize=True).translate(CURLY)
                    ids, known = (self._vocabulary.encode(each, eos=False) for each in (word, ordinary))
                    # A curly quote may be a known mark: one at which Moses cuts a word apart, or a rare one, as ids go by frequency.
                    pairs = zip(known, ids, strict=True) if ordered and len(known) == len(ids) else ()
                    rarer = any(max(RARE, 10 * usual) < odd for usual, odd in pairs)
                    other = not self._knows(word) or len(known) < len(ids) or rarer
                    self._odd[word] = ordinary if other and self._knows(ordinary) else None

    def _knows(self, word: str) -> bool:
        return all(token in self._vocabulary for token in self._vocabulary.tokenize(word))

    def warn(self, name: str, unknown: int, tokens: int) -> None:
        """Say what is wrong, and what helps: `unknown` of the `tokens` of the texts called `name` are `<unk>`."""
        if odd := [(word, known) for word, known in self._odd.items() if known is not None]:
            told = "; ".join(f"{word!r} is not {known!r} ({_codes(word, known)})" for word, known in odd[:5])
            curly = any(CURLY.keys() & map(ord, word) for word, _ in odd)
            helps = ["straight quotes help, which --raw takes where the model knows them better"] * curly
            helps += ["--normalize helps"] * any(prepared(word, lowercase=False, normalize=True) != word for word, _ in odd)
            logger.warning("%s: words are not what they look like (%s): %s; %s", name, f"{len(odd):,}", told, "; ".join(helps))
        if unknown > MANY_UNKNOWN * tokens:
            helps = ["a model of --data.level bpe knows every word"]
            if self._vocabulary.level == "word" and not self._vocabulary.lowercase:
                helps.insert(0, "a model of --data.lowercase true knows more of them")
            if self._vocabulary.level == "word" and self._vocabulary.tokenizer == "whitespace":
                helps.insert(0, "--raw cuts English as people write it")
            share, advice = f"{unknown / tokens:.0%}", "; ".join(helps)
            logger.warning("%s: %s of the tokens are %s, whose scores say little: %s", name, share, UNK, advice)


def _codes(token: str, known: str) -> str:
    return ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".strip() for c in dict.fromkeys(token) if c not in known)
