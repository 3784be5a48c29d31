"""What a model says of every token of a text, and the same for words and for regions of several words.

    text -> sentences -> tokens -> stretches, each read without a reset -> side by side through the model -> pieces -> words -> regions

A window of the text is held at a time, however long the text is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lstmlm.console import UserError, check
from lstmlm.data.table import IGNORE
from lstmlm.data.tokenize import EOS
from lstmlm.evaluation.perplexity import StaticScorer, Stretches
from lstmlm.evaluation.words import Unknown, cut, word_starts
from lstmlm.model.loss import token_scores
from lstmlm.model.pretrained import SavedModel

By = Literal["token", "word", "region"]
Space = Literal["before", "after"]
WINDOW_CHARACTERS = 1 << 18  # of the text, held at a time; no score depends on it
# What a model says of a unit, as a row has it. `entropy` is that of the distribution of the first token.
MEASURES: dict[By, tuple[str, ...]] = {
    "token": ("surprisal", "unk", "entropy", "rank", "word_id"),
    "word": ("surprisal", "unk", "entropy", "pieces"),
    "region": ("surprisal", "unk", "entropy", "pieces"),
}


class Sentence(NamedTuple):
    """A line of a text, or a row of a table.

    Attributes:
        number: From 1; empty ones count.
        lines: Each with whether the model reads it without what stood before.
        regions: Text and number of words of each.
        labels: Of the regions, where the table has them.
        values: Of the other columns of its row.
    """

    number: int
    lines: list[tuple[str, bool]]
    regions: Sequence[tuple[str, int]] = ()
    labels: Sequence[str] = ()
    values: Sequence[Any] = ()


class Unit(NamedTuple):
    """A token, a word or a region, and what a model says of it."""

    place: int
    """In its sentence, from 1."""
    text: str
    """As it stood; `<eos>` for the end of a line."""
    measures: tuple[Any, ...]
    """As MEASURES names them."""


class Pieces(NamedTuple):
    """What a model says of the tokens of a sentence, the `<eos>` of each line among them.

    Attributes:
        words: As they stood; the end of a line is one.
        is_end: Whether a word is the end of a line.
        texts: Of the tokens.
        word_of: For each token the place of its word, from 0.
        unk: 1 where `<unk>` was scored in a token's place, else 0.
        surprisal: -log2 of each token's probability: bits.
        entropy: Of the distribution that the token was drawn from, in bits.
        rank: 1 + the number of types that were likelier.
        boundary: -log2 of the probability that the word before the token was whole: 0 at a line's start, and where it is not asked for.
    """

    words: list[str]
    is_end: list[bool]
    texts: list[str]
    word_of: list[int]
    unk: list[int]
    surprisal: list[float]
    entropy: list[float]
    rank: list[int]
    boundary: list[float]

    def units(self, by: By, regions: Sequence[tuple[str, int]] = (), eos: bool = False) -> list[Unit]:
        """The rows of the sentence.

        Args:
            by: What has a row.
            regions: Text and number of words of each region.
            eos: Whether the end of a line has a row too.
        """
        if by == "token":
            return [
                Unit(i, text, (_digits(bits), unk, _digits(entropy), rank, word + 1))
                for i, (text, word, unk, bits, entropy, rank, _) in enumerate(zip(*self[2:], strict=True), 1)
                if eos or text != EOS or not self.is_end[word]
            ]
        sizes = [1] * len(self.words)  # in words, of what has a row or, where it has none, of a line's end
        names, ends = self.words, self.is_end
        if by == "region":
            sizes, names = [*(words for _, words in regions), 1], [*(name for name, _ in regions), EOS]
            ends = [*(False for _ in regions), True]
        units, piece, word = [], 0, 0
        for place, (name, size, end) in enumerate(zip(names, sizes, ends, strict=True), 1):
            first, word = piece, word + size
            while piece < len(self.word_of) and self.word_of[piece] < word:
                piece += 1
            if eos or not end:
                units.append(Unit(place, name, self._sum(first, piece)))
        return units

    def _sum(self, begin: int, end: int) -> tuple[float, int, float | None, int]:
        """Of the tokens begin ... end - 1. The boundary after them counts in place of the one before them (Pimentel and Meister, 2024)."""
        if begin == end:  # nothing of the word is left, as of a lone zero-width space under `normalize`
            return 0.0, 0, None, 0
        bits = sum(self.surprisal[begin:end]) - self.boundary[begin] + (*self.boundary, 0.0)[end]
        return _digits(bits), max(self.unk[begin:end]), _digits(self.entropy[begin]), end - begin


class Reader:
    """A model that reads the sentences of a text, and what it has read so far.

    Args:
        saved: The model.
        space: Whether the white space before a word counts with it, as the tokens have it, or the one after it.
        scored: Called with the number of tokens of each segment when it is done.

    Attributes:
        tokens: Scored so far, the ends of lines left out unless `eos` is set.
        unknown: How many of these are `<unk>`.
        bits: The sum of their surprisals.

    Raises:
        UsageError: The model has no tokens that begin with white space.
    """

    def __init__(
        self, saved: SavedModel, space: Space = "before", eos: bool = False, scored: Callable[[int], object] = lambda tokens: None
    ) -> None:
        self.vocabulary, self._eos = saved.text_vocabulary, eos
        check(space in get_args(Space), f"space must be one of {', '.join(get_args(Space))}, not {space!r}")
        check(
            space == "before" or self.vocabulary.level != "word",
            "--space after is for models whose tokens have white space in them: of characters or bpe",
        )
        self._starts = word_starts(self.vocabulary).to(saved.device) if space == "after" else None
        self._stretches = Stretches(lambda columns: _TokenScorer(saved, columns, self._starts, scored), self.vocabulary.eos, saved.device)
        self.unfamiliar = Unknown(saved)
        self.tokens, self.unknown, self.bits = 0, 0, 0.0

    def __call__(self, sentences: Sequence[Sentence]) -> list[Pieces]:
        """What it says of sentences that follow those of the call before.

        Raises:
            UserError: The scores are not finite.
        """
        vocabulary = self.vocabulary
        cuts = [[cut(line, vocabulary) for line, _ in sentence.lines] for sentence in sentences]
        ids = [i for lines in cuts for line in lines for i in (*line.ids, vocabulary.eos)]
        starts, fresh, place = [], [], 0  # of lines, and of those that are read afresh
        for sentence, lines in zip(sentences, cuts, strict=True):
            for (text, is_fresh), line in zip(sentence.lines, lines, strict=True):
                self.unfamiliar.see(text)
                starts.append(place)
                fresh += [place] * is_fresh
                place += len(line.ids) + 1
        scores = self._stretches(torch.tensor(ids), fresh)  # (4, n)
        if not scores.isfinite().all():
            raise UserError("the model's scores are not finite: its weights are far too large")
        scores[3, starts] = 0
        bits, entropy, boundary = (scores[[0, 1, 3]].double() / math.log(2)).tolist()
        rank, unk = scores[2].long().tolist(), [int(i == vocabulary.unk) for i in ids]
        result, first, counted = [], 0, []
        for lines in cuts:
            words, is_end, texts, word_of = list[str](), list[bool](), list[str](), list[int]()
            for line in lines:
                word_of += [len(words) + word for word in (*line.word_of, len(line.words))]
                texts += [*line.texts, EOS]
                words += [*line.words, EOS]
                is_end += [*(False for _ in line.words), True]
                counted += [True] * len(line.ids) + [self._eos]
            own = slice(first, first + len(texts))
            scored = (unk[own], bits[own], entropy[own], rank[own], boundary[own])
            result.append(Pieces(words, is_end, texts, word_of, *scored))
            first += len(texts)
        self.tokens += sum(counted)
        self.unknown += sum(unk)
        self.bits += sum(value for value, counts in zip(bits, counted, strict=True) if counts)
        return result


class _TokenScorer(StaticScorer):
    """The model as it is. For every target: nll, entropy, rank and nll of `starts`, float32 (4, T, B)."""

    def __init__(self, saved: SavedModel, columns: int, starts: Tensor | None, scored: Callable[[int], object]) -> None:
        super().__init__(saved.model, columns)
        self._starts, self._scored = starts, scored

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs, counted, decoder = self.hidden(inputs), targets != IGNORE, self.model.decoder
        scores = outputs.new_zeros(4, *targets.shape)  # a float32 holds ranks up to 2^24
        of_targets = token_scores(outputs[counted], decoder.weight, decoder.bias, targets[counted], self._starts)
        scores[:, counted] = torch.stack([score.float() for score in of_targets])
        self._scored(len(of_targets.nll))
        return scores


def read_windows(sentences: Iterable[Sentence], readers: Sequence[Reader]) -> Iterator[list[tuple[Sentence, list[Pieces]]]]:
    """Sentences with what each model says of them, in memory that does not grow with the text."""
    window: list[Sentence] = []
    characters = 0
    for sentence in sentences:
        window.append(sentence)
        characters += sum(len(line) + 1 for line, _ in sentence.lines)
        if characters >= WINDOW_CHARACTERS:
            yield list(zip(window, map(list, zip(*(reader(window) for reader in readers), strict=True)), strict=True))
            window, characters = [], 0
    if window:
        yield list(zip(window, map(list, zip(*(reader(window) for reader in readers), strict=True)), strict=True))


def _digits(number: float) -> float:
    return float(f"{number:.7g}")
