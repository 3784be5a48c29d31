"""How a stream is scored, and a result that says how it was obtained.

A protocol is a class: it has a name, settings, a scorer, and says which of its settings a search may move.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from lstmlm.config import COUNT, bounded, check_fields
from lstmlm.console import UserError, check
from lstmlm.evaluation.perplexity import Evaluation, Scored, Scorer, StaticScorer, Stretches, score_stream
from lstmlm.evaluation.text import Reset, Text
from lstmlm.model.pretrained import SavedModel


@dataclass(frozen=True, kw_only=True)
class Static:
    """The base of all protocols, and the plain one: the model as it is. Those that adapt to the text have settings as further fields."""

    name: ClassVar[str] = "static"
    searched: ClassVar[dict[str, Callable[[Any, float], Any]]] = {}
    """For each setting that a search may move: its value after a change by a factor."""
    advice: ClassVar[str] = "the model's weights are far too large"
    """Where the scores are not finite: what is wrong, or what to do."""

    columns: int = bounded(1, COUNT)
    """Columns that the stream is cut into and read side by side; all but the first begin without context. 1 is the reference."""
    reset: Reset = "never"
    """Where state and cache are emptied: never; at each line; at each document, as for `lstmlm score`."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.reset == "never" or self.columns == 1, f"--reset {self.reset} scores stretches in parallel already: leave out --columns")

    @property
    def settings(self) -> dict[str, Any]:
        """What it adapts with, under the names of the command line."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(Static)}
        return {name.removesuffix("_"): value for name, value in vars(self).items() if name in own}

    def scorer(self, saved: SavedModel, columns: int) -> Scorer:
        """A fresh scorer of so many columns."""
        return StaticScorer(saved.model, columns)


@dataclass(frozen=True, kw_only=True)
class Measurement(Evaluation):
    """The score of a text, and how it was obtained."""

    protocol: str  # its name
    settings: dict[str, Any]  # of the protocol
    reset: str  # `never`, `line` or `document`
    seconds: float  # that the scoring took; loading, and statistics of gradients, are not in it
    unknown: int  # targets that are `<unk>`
    ids: Tensor = field(repr=False, compare=False)  # of every target in the order of the text, int32 (N,)
    token_nll: Tensor = field(repr=False, compare=False)  # of every target in nats, float32 (N,)
    fresh: Tensor = field(repr=False, compare=False)  # which are read from the zero state, a column's or a stretch's first; bool (N,)

    def figures(self) -> dict[str, Any]:
        """What is told of it, without the single tokens."""
        names = "tokens targets unknown nll loss ppl word_ppl bpc words characters columns protocol reset settings"
        return {**{name: getattr(self, name) for name in names.split()}, "seconds": round(self.seconds, 2)}

    def line(self) -> str:
        """The figures in one line, to be read."""
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        per_word = f", ppl per word {self.word_ppl:.4f}" if self.word_ppl != self.ppl else ""
        return (
            f"{self.tokens:,} tokens, {self.targets:,} targets, {self.unknown / self.targets:.2%} unknown, nll {self.nll:.2f}, "
            f"ppl {self.ppl:.4f}{per_word}, bpc {self.bpc:.4f}, {self.protocol}, {self.columns} column{'s' * (self.columns > 1)}, "
            f"reset {self.reset}{settings}, {self.seconds:.1f} s"
        )


def measure(saved: SavedModel, text: Text, protocol: Static, scored: Scored = lambda targets: None) -> Measurement:
    """Score a text that is cut into the model's tokens.

    Raises:
        UserError: The scores are not finite, or the text's lines cannot be told apart.
    """
    stream, device = text.stream, saved.device
    columns = min(protocol.columns, len(stream) - 1)
    first = protocol.scorer(saved, columns)  # what scorers need of the training split is computed before the clock starts
    begun = time.perf_counter()
    if protocol.reset == "never":
        ids = stream[1:]
        starts = [b * len(ids) // columns for b in range(columns)]
        token_nll = score_stream(first, stream, columns, device, protocol.settings.get("bptt"), scored)
    else:
        ids, starts = stream, text.starts(protocol.reset, saved.vocabulary.eos)
        stretches = Stretches(lambda columns: protocol.scorer(saved, columns), saved.vocabulary.eos, device, scored)
        token_nll = stretches.all(ids, starts)
    seconds = time.perf_counter() - begun
    fresh = torch.zeros(len(ids), dtype=torch.bool)
    fresh[starts] = True
    result = Measurement(
        tokens=len(stream),
        targets=len(token_nll),
        nll=token_nll.double().sum().item(),
        columns=columns,
        protocol=protocol.name,
        settings=protocol.settings,
        reset=protocol.reset,
        characters=text.characters,
        words=text.words,
        seconds=seconds,
        unknown=int((ids == saved.vocabulary.unk).sum()),
        ids=ids,
        token_nll=token_nll,
        fresh=fresh,
    )
    if not math.isfinite(result.ppl):  # NaN too
        of_known = token_nll[ids != saved.vocabulary.unk].double().sum().item() / result.targets
        advice = f"the model gives no probability to <unk>, which stands for {result.unknown:,} tokens"
        raise UserError(f"the perplexity of {text.name} is not finite: {advice if of_known < 700 else protocol.advice}")
    return result
