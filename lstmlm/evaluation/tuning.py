"""A search for the settings of a protocol, on the validation split alone."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lstmlm.console import UserError, check
from lstmlm.evaluation.protocol import Static, measure
from lstmlm.evaluation.text import split_text
from lstmlm.model.pretrained import SavedModel

EVALUATIONS, TOKENS = 30, 30_000  # the budget of a search, where the caller names none
FIRST_FACTOR, LAST_FACTOR = 2.0, 1.15  # by which a setting is changed


def tune(saved: SavedModel, protocol: Static, evaluations: int, tokens: int, told: Callable[[str], None]) -> tuple[Static, dict[str, Any]]:
    """Search the settings that a protocol names for the least perplexity on validation.

    One setting after the other is multiplied or divided by a factor for as long as the perplexity falls. When no setting gains by it
    any more, the square root of the factor takes its place, until that is below LAST_FACTOR. Nothing is random: the same call gives the
    same result. The test split is never looked at.

    Args:
        protocol: Where the search begins; all other settings stay as they are.
        evaluations: Largest number of times that a text is scored.
        tokens: Length of that text, the beginning of the validation split.
        told: Called with a line after each evaluation.

    Returns:
        The protocol of the least perplexity, and the figures of the search as `--json` prints them.

    Raises:
        UserError: There is nothing to search, or every evaluation diverged.
    """
    check(bool(protocol.searched), f"--tune: protocol {protocol.name} has no settings to search")
    check(protocol.reset == "never", f"--tune needs --reset never, not {protocol.reset}")
    check(evaluations >= 1, f"a search needs at least 1 evaluation, not {evaluations}")
    check(tokens >= 2, f"a search needs a text of at least 2 tokens, not {tokens}")
    text = split_text(saved, "validation")
    text = replace(text, stream=text.stream[:tokens])
    protocol.scorer(saved, 1)  # what is missing for it is told now: a failure below is a perplexity that is not finite
    seen: dict[Static, float] = {}
    failures: list[UserError] = []
    begun = time.perf_counter()

    def ppl(candidate: Static) -> float:
        if candidate not in seen and len(seen) < evaluations:
            try:
                seen[candidate] = measure(saved, text, candidate).ppl
            except UserError as error:  # it diverged
                seen[candidate] = math.inf
                failures.append(error)
            settings = ", ".join(f"{name} {value}" for name, value in candidate.settings.items())
            told(f"evaluation {len(seen)} of {evaluations}: ppl {seen[candidate]:.3f} with {settings}")
        return seen.get(candidate, math.inf)  # so nothing gains any more when the budget is spent

    best, factor = protocol, FIRST_FACTOR
    ppl(best)
    while factor >= LAST_FACTOR:
        before = best
        for name, move in protocol.searched.items():
            for direction in (factor, 1 / factor):
                start = best
                while ppl(candidate := replace(best, **{name: move(getattr(best, name), direction)})) < ppl(best):
                    best = candidate
                if best != start:
                    break
        if best == before:
            factor = math.sqrt(factor)
    if seen[best] == math.inf:
        raise UserError(f"no setting that the search tried gave a finite perplexity: {failures[-1]}")
    figures = {"split": "validation", "tokens": len(text.stream), "evaluations": len(seen), "ppl": seen[best]}
    return best, {**figures, "seconds": round(time.perf_counter() - begun, 2)}
