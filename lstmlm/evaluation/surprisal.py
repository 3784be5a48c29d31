"""The surprisal of every token of a text, as rows of a table.

    text -> lines -> stretches, each read without a reset -> side by side through the model -> rows in the text's order

A window of the text is held at a time, however long the text is. Its stretches start side by side, the longest first, and a segment
takes as many rows of those that still run as make SEGMENT_TOKENS. So short lines cost no more than long ones, and hardly any padding
is computed. A stretch that goes on in the next window takes its state along.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lstmlm.console import check
from lstmlm.data.tokenize import EOS, plain
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.model.language_model import LSTMLanguageModel, State
from lstmlm.model.loss import TokenScores, token_scores
from lstmlm.model.pretrained import default_device, find_model, load_pretrained
from lstmlm.runtime.hardware import ieee_products

Reset = Literal["line", "document", "never"]
WINDOW_TOKENS = 1 << 16  # tokens of the text held at a time
SEGMENT_TOKENS = 1 << 12  # tokens in one call of the model; the scores depend on neither
TITLE = re.compile(r"\s*= [^=]+ =\s*")  # of a document; `= = Heading = =` is one within a document


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
    text: str, model: str | Path | None = None, reset: Reset = "line", eos: bool = False, raw: bool = False
) -> list[Row]:
    """The rows of `lstmlm score` for a text at hand.

    Args:
        text: One line or several.
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        reset: Where the model forgets what it read, and goes on as after an `<eos>` at the very start: at the end of every `line`; where a
            `document` begins, which is at a `= Title =`, or after an empty line in a text without titles; or `never`.
        eos: Whether the `<eos>` at a line's end has a row too.
        raw: Whether the text is English as people write it, for a model whose words stand between white space. Moses cuts it into
            words as WikiText was cut; the rows are of those.

    Raises:
        UserError: The model cannot be read, or the text is empty.
    """
    language_model, vocabulary = load_pretrained(find_model(model), default_device())
    if raw:
        vocabulary = vocabulary.for_raw_text()
    lines = plain(text).removesuffix("\n").split("\n")
    rows = [row for window in score_lines([lines], language_model, vocabulary, reset, eos) for row in window]
    check(bool(rows), "there is no text to score")
    return rows


def score_lines(
    texts: Iterable[Iterable[str]],
    model: LSTMLanguageModel,
    vocabulary: Vocabulary,
    reset: Reset = "line",
    eos: bool = False,
) -> Iterator[list[Row]]:
    """Rows of texts of any length, in memory that does not grow with them.

    Args:
        texts: Lines of each; a document ends with its text at the latest.
        model: On any device.
        vocabulary: Of the model.
        reset, eos: As for `score_text`.
    """
    check(reset in get_args(Reset), f"reset must be one of {', '.join(get_args(Reset))}, not {reset!r}")
    tokens = _tokens(texts, vocabulary, reset)
    previous, state = vocabulary.eos, model.initial_state(1)
    while window := list(islice(tokens, WINDOW_TOKENS)):
        ids = torch.tensor([token.id for token in window])
        fresh = [i for i, token in enumerate(window) if token.fresh]
        inputs = torch.cat([ids.new_tensor([previous]), ids[:-1]])
        inputs[fresh] = vocabulary.eos
        scores, state = _score_window(model, inputs, ids, fresh, state)
        previous = window[-1].id
        columns = (scores.nll / math.log(2)).tolist(), (scores.entropy / math.log(2)).tolist(), scores.rank.tolist()
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
            for token, surprisal, entropy, rank in zip(window, *columns, strict=True)
            if eos or token.place <= token.words
        ]


class _Token(NamedTuple):
    line: int
    place: int
    words: int  # tokens of its line without `<eos>`
    text: str
    id: int
    fresh: bool  # whether the model reads it without what stood before


def _tokens(texts: Iterable[Iterable[str]], vocabulary: Vocabulary, reset: Reset) -> Iterator[_Token]:
    number = 0
    for lines in texts:
        for line, first in with_resets(lines, reset):
            number += 1
            fresh = first and (number == 1 or reset != "never")
            words, ids = vocabulary.tokenize(line), vocabulary.encode(line, eos=False)
            for place, (text, i) in enumerate(zip([*words, EOS], [*ids, vocabulary.eos], strict=True), 1):
                yield _Token(number, place, len(words), text, i, fresh and place == 1)


def with_resets(lines: Iterable[str], reset: Reset) -> Iterator[tuple[str, bool]]:
    """Each line of a text, and whether the model reads it without what stood before.

    Args:
        lines: From the first, which is read so.
        reset: As for `score_text`.
    """
    fresh, titled = True, False
    for line in lines:
        if reset == "document" and TITLE.fullmatch(line):
            fresh = titled = True
        yield line, fresh
        fresh = reset == "line" or (reset == "document" and not titled and not line.strip())


@torch.inference_mode()
@ieee_products()
def _score_window(
    model: LSTMLanguageModel, inputs: Tensor, targets: Tensor, fresh: list[int], state: State
) -> tuple[TokenScores, State]:
    """Scores of a window's targets, on the CPU, and the state that its last stretch leaves.

    Args:
        model: On any device.
        inputs: int64 (n,), the token before each target.
        targets: int64 (n,).
        fresh: Where a stretch begins with the zero state.
        state: Of the first stretch where that does not.
    """
    device = model.embedding.weight.device
    inputs, targets = inputs.to(device), targets.to(device)
    stretches = sorted(pairwise(sorted({0, *fresh, len(inputs)})), key=lambda stretch: stretch[0] - stretch[1])
    begins = torch.tensor([begin for begin, _ in stretches], device=device)  # (B,), the longest stretch first
    ends = torch.tensor([end for _, end in stretches], device=device)
    lengths = [end - begin for begin, end in stretches]
    last = next(b for b, (_, end) in enumerate(stretches) if end == len(inputs))
    columns = model.initial_state(len(stretches))
    if 0 not in fresh:
        first = next(b for b, (begin, _) in enumerate(stretches) if begin == 0)
        columns.copy_(state, slice(first, first + 1))
    nll, entropy = torch.empty(2, len(inputs), device=device)
    rank = torch.empty_like(targets)
    running, row = len(stretches), 0
    while row < lengths[0]:
        while lengths[running - 1] <= row:
            running -= 1
        end = min(row + max(1, SEGMENT_TOKENS // running), lengths[0])
        if row < lengths[last]:
            end = min(end, lengths[last])  # a segment ends where the last stretch does, and so has its state
        places = begins[:running] + torch.arange(row, end, device=device)[:, None]  # (T, B)
        present = places < ends[:running]
        tokens = inputs[places.clamp(max=len(inputs) - 1)]
        outputs, columns = model.hidden(tokens, columns.select(slice(running)))
        places = places[present]  # (N,)
        nll[places], entropy[places], rank[places] = token_scores(
            outputs[present], model.decoder.weight, model.decoder.bias, targets[places]
        )
        if end == lengths[last]:
            state = columns.select(slice(last, last + 1))
        row = end
    return TokenScores(nll.cpu(), entropy.cpu(), rank.cpu()), state


def _digits(number: float) -> float:
    return float(f"{number:.7g}")
