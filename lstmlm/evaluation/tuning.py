"""A search for the settings of a protocol, on the validation split alone."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lstmlm.console import UserError, check
from lstmlm.evaluation.protocol import Static, measure
from lstmlm.evaluation.text import split_text
from lstmlm.model.pretrained import SavedModel

EVALUATIONS, TOKENS = 30, 30_000  # the budget of a search, where the caller names none
FIRST_FACTOR, LAST_FACTOR = 2.0, 1.15  # by which a setting is changed


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        protocol: The one of the least perplexity among those that it tried.
        ppl: Perplexity of that protocol on the text of the search.
        split: The split that the text is from.
        tokens: Length of the text.
        evaluations: How often it was scored.
        seconds: What the search took.
    """

    protocol: Static
    ppl: float
    split: str
    tokens: int
    evaluations: int
    seconds: float

    def figures(self) -> dict[str, Any]:
        """Its figures as `--json` prints them; the protocol stands elsewhere."""
        names = ("split", "tokens", "evaluations", "ppl")
        return {**{name: getattr(self, name) for name in names}, "seconds": round(self.seconds, 2)}


class _BudgetSpentError(Exception):
    pass


def tune(
    saved: SavedModel,
    protocol: Static,
    evaluations: int = EVALUATIONS,
    tokens: int = TOKENS,
    told: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Search the settings that a protocol names for the least perplexity on validation.

    One setting after the other is multiplied or divided by a factor for as long as the perplexity falls. When no setting gains by it
    any more, the square root of the factor takes its place, until that is below LAST_FACTOR. Nothing is random: the same call gives the
    same result. The test split is never looked at.

    Args:
        saved: The model.
        protocol: Where the search begins; all other settings stay as they are.
        evaluations: Largest number of times that a text is scored.
        tokens: Length of that text: the beginning of the validation split.
        told: Called with a line after each evaluation.

    Raises:
        UserError: There is nothing to search, or every evaluation diverged.
    """
    check(bool(protocol.searched), f"--tune: protocol {protocol.name} has no settings to search")
    check(protocol.reset == "never", f"--tune needs --reset never, not {protocol.reset}")
    check(evaluations >= 1, f"a search needs at least 1 evaluation, not {evaluations}")
    check(tokens >= 2, f"a search needs a text of at least 2 tokens, not {tokens}")
    text = split_text(saved, "validation")
    text = replace(text, stream=text.stream[:tokens])
    seen: dict[Static, float] = {}
    begun = time.perf_counter()

    def ppl(candidate: Static) -> float:
        if candidate not in seen:
            if len(seen) == evaluations:
                raise _BudgetSpentError
            try:
                seen[candidate] = measure(saved, text, candidate).ppl
            except UserError:  # it diverged
                seen[candidate] = math.inf
            settings = ", ".join(f"{name} {value}" for name, value in candidate.settings.items())
            told(f"evaluation {len(seen)} of {evaluations}: ppl {seen[candidate]:.3f} with {settings}")
        return seen[candidate]

    best, factor = protocol, FIRST_FACTOR
    try:
        ppl(best)
        while factor >= LAST_FACTOR:
            before = best
            for name, move in protocol.searched.items():
                for direction in (factor, 1 / factor):
                    moved = False
                    while ppl(candidate := replace(best, **{name: move(getattr(best, name), direction)})) < ppl(best):
                        best, moved = candidate, True
                    if moved:
                        break
            if best == before:
                factor = math.sqrt(factor)
    except _BudgetSpentError:
        best = min(seen, key=seen.__getitem__)
    if seen[best] == math.inf:
        raise UserError("every setting that the search tried diverged: begin with a smaller lr")
    return Tuning(best, seen[best], "validation", len(text.stream), len(seen), time.perf_counter() - begun)
