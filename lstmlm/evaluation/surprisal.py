"""The surprisal of every token of a text, as rows of a table.

    text -> lines -> stretches, each read without a reset -> side by side through the model -> rows in the text's order

A window of the text is held at a time, however long the text is.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from lstmlm.console import UserError, check
from lstmlm.data.table import IGNORE
from lstmlm.data.tokenize import EOS, plain
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.evaluation.perplexity import StaticScorer, Stretches
from lstmlm.evaluation.text import Reset, with_resets
from lstmlm.model.loss import token_scores
from lstmlm.model.pretrained import SavedModel, load

WINDOW_TOKENS = 1 << 16  # tokens of the text held at a time; no score depends on it


class Row(NamedTuple):
    """A token of a text and its scores, which have the seven digits that a float32 holds."""

    sentence_id: int
    """Number of its line, from 1; empty lines count."""
    token_id: int
    """Its place in the line, from 1."""
    token: str
    """As it stood in the text; `<eos>` for the line's end."""
    surprisal: float
    """-log2 of its probability: bits."""
    unk: int
    """1 where `<unk>` was scored in its place, else 0."""
    entropy: float
    """Of the distribution that the token was drawn from, in bits."""
    rank: int
    """1 + the number of types that were likelier."""


def score_text(
    text: str,
    model: str | Path | SavedModel | None = None,
    reset: Reset = "line",
    eos: bool = False,
    raw: bool = False,
) -> list[Row]:
    """The rows of `lstmlm score` for a text at hand.

    Args:
        text: One line or several.
        model, raw: As for `load`; of raw text the rows are those of the words that Moses cuts.
        reset: Where the model forgets what it read, and goes on as after an `<eos>` at the very start: at the end of every `line`; where a
            `document` begins, which is at a `= Title =`, or after an empty line in a text without titles; or `never`.
        eos: Whether the `<eos>` at a line's end has a row too.

    Raises:
        UserError: The model cannot be read, or the text is empty.
    """
    lines = plain(text).removesuffix("\n").split("\n")
    rows = [row for window in score_lines([lambda: iter(lines)], load(model, raw), reset, eos) for row in window]
    check(bool(rows), "there is no text to score")
    return rows


def score_lines(
    texts: Iterable[Callable[[], Iterator[str]]], saved: SavedModel, reset: Reset = "line", eos: bool = False
) -> Iterator[list[Row]]:
    """Rows of texts of any length, in memory that does not grow with them.

    Args:
        texts: Each gives its lines; a document ends with its text at the latest.
        saved: The model.
        reset, eos: As for `score_text`.

    Raises:
        UserError: The scores are not finite.
    """
    check(reset in get_args(Reset), f"reset must be one of {', '.join(get_args(Reset))}, not {reset!r}")
    vocabulary = saved.text_vocabulary
    tokens = _tokens(texts, vocabulary, reset)
    stretches = Stretches(lambda columns: SurprisalScorer(saved.model, columns), vocabulary.eos, saved.device)
    while window := list(islice(tokens, WINDOW_TOKENS)):
        ids = torch.tensor([token.id for token in window])
        scores = stretches(ids, [i for i, token in enumerate(window) if token.fresh])
        if not scores.isfinite().all():
            raise UserError("the model's scores are not finite: its weights are far too large")
        surprisals, entropies = (scores[:2] / math.log(2)).tolist()
        ranks = scores[2].long().tolist()
        yield [
            Row(
                token.line,
                token.place,
                token.text,
                _digits(surprisal),
                int(token.id == vocabulary.unk),
                _digits(entropy),
                rank,
            )
            for token, surprisal, entropy, rank in zip(window, surprisals, entropies, ranks, strict=True)
            if eos or token.place <= token.words
        ]


class SurprisalScorer(StaticScorer):
    """The model as it is. For every target it gives nll and entropy in nats, and rank: float32 (3, T, B)."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As `Scorer`, with the three scores before T."""
        outputs, counted, decoder = self.hidden(inputs), targets != IGNORE, self.model.decoder
        scores = outputs.new_zeros(3, *targets.shape)  # a float32 holds ranks up to 2^24
        of_targets = token_scores(outputs[counted], decoder.weight, decoder.bias, targets[counted])
        scores[:, counted] = torch.stack([score.float() for score in of_targets])
        return scores


class _Token(NamedTuple):
    line: int
    place: int
    words: int  # tokens of its line without `<eos>`
    text: str
    id: int
    fresh: bool  # whether the model reads it without what stood before


def _tokens(texts: Iterable[Callable[[], Iterator[str]]], vocabulary: Vocabulary, reset: Reset) -> Iterator[_Token]:
    number = 0
    for lines in texts:
        for line, first in with_resets(lines, reset):
            number += 1
            fresh = first and (number == 1 or reset != "never")
            words, ids = vocabulary.tokenize(line), vocabulary.encode(line, eos=False)
            for place, (text, i) in enumerate(zip([*words, EOS], [*ids, vocabulary.eos], strict=True), 1):
                yield _Token(number, place, len(words), text, i, fresh and place == 1)


def _digits(number: float) -> float:
    return float(f"{number:.7g}")
