"""Minimal pairs: does a model find the good sentence of each pair likelier than the bad one? (BLiMP, Warstadt et al., 2020.)"""

import json
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from lstmlm.console import UserError, check
from lstmlm.data.reading import check_form, read_rows
from lstmlm.data.tokenize import plain
from lstmlm.evaluation.perplexity import StaticScorer, Stretches
from lstmlm.evaluation.words import Unknown, cut
from lstmlm.files import Output
from lstmlm.model.pretrained import SavedModel, load

logger = logging.getLogger(__name__)

# What the columns of a pair are by each method: context and what is scored after it, of the good and of the bad side.
By = Literal["sentence", "one_prefix", "two_prefix"]
METHODS: dict[By, tuple[tuple[str | None, str], tuple[str | None, str]]] = {
    "sentence": ((None, "sentence_good"), (None, "sentence_bad")),
    "one_prefix": (("one_prefix_prefix", "one_prefix_word_good"), ("one_prefix_prefix", "one_prefix_word_bad")),
    "two_prefix": (("two_prefix_prefix_good", "two_prefix_word"), ("two_prefix_prefix_bad", "two_prefix_word")),
}


def score_pairs(
    file: str | Path, model: str | Path | SavedModel | None = None, raw: bool = False, by: By = "sentence", normalize: bool = False
) -> list[dict[str, Any]]:
    """Score the pairs of a file, each sentence alone, after `<eos>`.

    Args:
        file: Rows with `sentence_good`, `sentence_bad` and `UID`, of any form that training takes: JSON lines, a JSON array, `.gz`.
        model, raw, normalize: As for `load`. BLiMP's sentences are raw English.
        by: `sentence`: up to its own `<eos>`. `one_prefix`, `two_prefix`: the critical words after what stands before them, as BLiMP names
            them (Warstadt et al., 2020, section 4); pairs that are not made for the method are left out.

    Returns:
        Each row as the file has it, with
        `surprisal_good`, `surprisal_bad`: -log2 of the probability of a side: bits;
        `outcome`: `right` where the good side is likelier; `tie` where both have the same probability, as two sentences have that differ
            in unknown words alone; else `wrong`;
        `words`: tokens of both sides that were scored, without `<eos>`, and `unknown`: how many of these are `<unk>`.

    Raises:
        UserError: The file or the model cannot be read, or a row is not a pair.
    """
    check(by in METHODS, f"by must be one of {', '.join(METHODS)}, not {by!r}")
    rows = _read(Path(file), by)
    saved = load(model, raw, normalize)
    vocabulary, unknown = saved.text_vocabulary, Unknown(saved)
    sides: list[tuple[list[int], int]] = []  # token ids, and from which on they are scored
    for row in rows:
        for context, scored in METHODS[by]:
            before = row[context].strip() if context else ""
            line = cut(f"{before} {row[scored]}".strip() if context else row[scored], vocabulary)
            unknown.see(row[scored])
            first = bisect_left(line.word_of, len(before.split()))
            sides.append(([*line.ids, vocabulary.eos], first))
    starts = [0, *accumulate(len(ids) for ids, _ in sides)]
    stretches = Stretches(lambda columns: StaticScorer(saved.model, columns), vocabulary.eos, saved.device)
    nll = stretches.all(torch.tensor([i for ids, _ in sides for i in ids]), starts[:-1])
    if not nll.isfinite().all():
        raise UserError("the model's scores are not finite: its weights are far too large")
    end = None if by == "sentence" else -1  # a critical region ends before `<eos>`
    parts = nll.split([len(ids) for ids, _ in sides])
    sums = [part[first:end].double().sum().item() for part, (_, first) in zip(parts, sides, strict=True)]
    pairs = []
    for row, good, bad, good_nll, bad_nll in zip(rows, sides[::2], sides[1::2], sums[::2], sums[1::2], strict=True):
        # Like sentences in other columns may differ by rounding.
        tie = good == bad or good_nll == bad_nll
        outcome = "tie" if tie else "right" if good_nll < bad_nll else "wrong"
        scored_ids = good[0][good[1] : -1] + bad[0][bad[1] : -1]
        scores = {
            "surprisal_good": good_nll / math.log(2),
            "surprisal_bad": bad_nll / math.log(2),
            "outcome": outcome,
            "words": len(scored_ids),
            "unknown": scored_ids.count(vocabulary.unk),
        }
        pairs.append(row | scores)
    unknown.warn(str(file), sum(pair["unknown"] for pair in pairs), sum(pair["words"] for pair in pairs))
    return pairs


def summarize(pairs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each UID in the order of the file, and of `all` (`all pairs` where a UID has that name): how many `pairs`, `accuracy`, the share
    of those whose outcome is `right`, how many `ties`, and `unknown`, the share of `<unk>` among the tokens."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault(pair["UID"], []).append(pair)
    total = "all"
    while total in groups:
        total += " pairs"
    summaries = {}
    for name, group in [*groups.items(), (total, pairs)]:
        outcomes = [pair["outcome"] for pair in group]
        words, unknown = (sum(pair[key] for pair in group) for key in ("words", "unknown"))
        accuracy = outcomes.count("right") / len(group)
        share = unknown / words if words else 0.0
        summaries[name] = {"pairs": len(group), "accuracy": accuracy, "ties": outcomes.count("tie"), "unknown": share}
    return summaries


def write_pairs(output: Output, pairs: Sequence[dict[str, Any]]) -> None:
    """Write a line of JSON for each pair."""
    output.write("".join(f"{json.dumps(pair, ensure_ascii=False, default=str)}\n" for pair in pairs).encode())


def _read(path: Path, by: By) -> list[dict[str, Any]]:
    """The rows that are made for a method."""
    check_form(path)
    needed = ["UID", "sentence_bad", *(name for side in METHODS[by] for name in side if name)]
    scored = [name for _, name in METHODS[by]]
    pairs, others = [], 0
    try:
        for number, (good, row) in enumerate(read_rows(path, "sentence_good"), 1):
            row = {"sentence_good": good.removesuffix("\n"), **row}
            made = str(row.get(f"{by}_method", by in "".join(row)))  # in CSV it is a text
            if by != "sentence" and made.strip().lower() not in ("true", "1", "1.0"):
                others += 1
                continue
            for name in needed:
                value = row.get(name)
                line = plain(value).removesuffix("\n") if isinstance(value, str) else "\n"
                if "\n" in line or (name in scored and not line.strip()):
                    raise UserError(f"{path}, row {number} has no {name!r} that is a line of text")
                row[name] = line
            pairs.append(row)
    except UserError as error:
        raise type(error)(str(error).partition(": rename one")[0]) from None
    if not pairs:
        raise UserError(f"{path} has no pairs" + f" for --by {by}" * (by != "sentence"))
    if others:
        logger.warning("%s: %s pairs are not made for --by %s, and are left out", path, f"{others:,}", by)
    return pairs
