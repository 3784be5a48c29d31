"""Minimal pairs: does a model find the good sentence of each pair likelier than the bad one? (BLiMP, Warstadt et al., 2020.)"""

import json
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import torch

from lstmlm.console import UserError, check
from lstmlm.data.reading import check_form, read_rows
from lstmlm.data.tokenize import plain
from lstmlm.evaluation.perplexity import StaticScorer, Stretches
from lstmlm.evaluation.surprisal import TokenScorer
from lstmlm.evaluation.surprisal_tables import FORMS, Format
from lstmlm.evaluation.words import Cut, Unknown, cut, word_starts
from lstmlm.files import Output
from lstmlm.model.pretrained import ModelPlace, load

logger = logging.getLogger(__name__)

# What the columns of a pair are by each method: context and what is scored after it, of the good and of the bad side.
By = Literal["sentence", "one_prefix", "two_prefix"]
METHODS: dict[By, tuple[tuple[str | None, str], tuple[str | None, str]]] = {
    "sentence": ((None, "sentence_good"), (None, "sentence_bad")),
    "one_prefix": (("one_prefix_prefix", "one_prefix_word_good"), ("one_prefix_prefix", "one_prefix_word_bad")),
    "two_prefix": (("two_prefix_prefix_good", "two_prefix_word"), ("two_prefix_prefix_bad", "two_prefix_word")),
}


def score_pairs(
    file: str | Path, model: ModelPlace = None, raw: bool = False, by: By = "sentence", normalize: bool = False
) -> list[dict[str, Any]]:
    """Score the pairs of a file, each sentence alone, after `<eos>`.

    Args:
        file: Rows with `sentence_good`, `sentence_bad` and, in all or none, `UID`, of any form that training takes: CSV, JSON lines, `.gz`.
        model, raw, normalize: As for `load`. BLiMP's sentences are raw English.
        by: `sentence`: up to its own `<eos>`. `one_prefix`, `two_prefix`: the critical words after what stands before them, as BLiMP names
            them (Warstadt et al., 2020, section 4); pairs that are not made for the method are left out. A model of bpe or characters
            scores whole words: that they end counts, and that the words before them have ended does not (Pimentel and Meister, 2024).

    Returns:
        Each row as the file has it, with
        `surprisal_good`, `surprisal_bad`: -log2 of the probability of a side: bits;
        `outcome`: `right` where the good side is likelier; `tie` where both have the same probability, as two sentences have that differ
            in unknown words alone; else `wrong`;
        `words`: tokens of both sides, what stands before the critical words included, without `<eos>`;
        `unknown_good`, `unknown_bad`: those of each side, as they stood, that the model does not know.

    Raises:
        UserError: The file or the model cannot be read, or a row is not a pair.
    """
    check(by in METHODS, f"by must be one of {', '.join(METHODS)}, not {by!r}")
    rows = _read(Path(file), by)
    saved = load(model, raw, normalize)
    vocabulary, unknown = saved.text_vocabulary, Unknown(saved)
    sides: list[tuple[Cut, int]] = []  # each line, and from which token on it is scored
    for row in rows:
        for context, scored in METHODS[by]:
            before = row[context].strip() if context else ""
            line = cut(f"{before} {row[scored]}".strip() if context else row[scored], vocabulary)
            unknown.see(" ".join(line.words))
            sides.append((line, bisect_left(line.word_of, len(before.split()))))
    ids = [[*line.ids, vocabulary.eos] for line, _ in sides]
    starts = [0, *accumulate(map(len, ids))]
    words = word_starts(vocabulary).to(saved.device) if by != "sentence" and vocabulary.level != "word" else None
    scorer = StaticScorer if words is None else partial(TokenScorer, starts=words)
    scores = Stretches(partial(scorer, saved.model), vocabulary.eos, saved.device).all(torch.tensor([*chain(*ids)]), starts[:-1]).double()
    if not scores.isfinite().all():
        raise UserError("the model's scores are not finite: its weights are far too large")
    nll, boundary = (scores, torch.zeros_like(scores)) if words is None else (scores[0], scores[3])
    boundary[starts[:-1]] = 0  # at the start of a line no word has to end
    sums = []
    for start, end, (_, first) in zip(starts, starts[1:], sides, strict=False):
        scored_end = end - (by != "sentence")  # a critical region ends before `<eos>`
        sums.append((nll[start + first : scored_end].sum() + boundary[end - 1] - boundary[start + first]).item())
    pairs = []
    for row, good, bad, good_nll, bad_nll in zip(rows, sides[::2], sides[1::2], sums[::2], sums[1::2], strict=True):
        # Like sentences in other columns may differ by rounding.
        tie = (good[0].ids, good[1]) == (bad[0].ids, bad[1]) or good_nll == bad_nll
        figures: dict[str, Any] = {
            "surprisal_good": good_nll / math.log(2),
            "surprisal_bad": bad_nll / math.log(2),
            "outcome": "tie" if tie else "right" if good_nll < bad_nll else "wrong",
            "words": len(good[0].ids) + len(bad[0].ids),
        }
        for side, (line, _) in (("good", good), ("bad", bad)):
            figures[f"unknown_{side}"] = [text for text, i in zip(line.texts, line.ids, strict=True) if i == vocabulary.unk]
        pairs.append(row | figures)
    unknown.warn(str(file), sum(map(_unknown, pairs)), sum(pair["words"] for pair in pairs))
    return pairs


def summarize(pairs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each UID in the order of the file, and of `all` (`all pairs` where a UID has that name): how many `pairs`, `accuracy`, the share
    of those whose outcome is `right`, how many `ties`, and `unknown`, the share of `<unk>` among the tokens. `known_pairs` are those in
    which the same words in the same order, mostly none, are unknown on both sides; `known_accuracy` is that of these, None of none.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        if "UID" in pair:
            groups.setdefault(pair["UID"], []).append(pair)
    total = "all"
    while total in groups:
        total += " pairs"
    summaries = {}
    for name, group in [*groups.items(), (total, pairs)]:
        words, known = sum(pair["words"] for pair in group), [pair for pair in group if pair["unknown_good"] == pair["unknown_bad"]]
        summaries[name] = {
            "pairs": len(group),
            "accuracy": _accuracy(group),
            "ties": sum(pair["outcome"] == "tie" for pair in group),
            "unknown": sum(map(_unknown, group)) / words if words else 0.0,
            "known_pairs": len(known),
            "known_accuracy": _accuracy(known) if known else None,
        }
    return summaries


def _accuracy(pairs: Sequence[dict[str, Any]]) -> float:
    return sum(pair["outcome"] == "right" for pair in pairs) / len(pairs)


def _unknown(pair: dict[str, Any]) -> int:
    return len(pair["unknown_good"]) + len(pair["unknown_bad"])


def write_pairs(output: Output, form: Format | None, pairs: Sequence[dict[str, Any]]) -> None:
    """Write a row for each pair; None = a line of JSON."""
    if form in (None, "jsonl"):
        output.write("".join(f"{json.dumps(pair, ensure_ascii=False, default=str)}\n" for pair in pairs).encode())
        return
    columns = [*dict.fromkeys(chain.from_iterable(pairs))]
    cells = [[" ".join(cell) if isinstance(cell, list) else cell for cell in map(pair.get, columns)] for pair in pairs]
    with output.opened() as file:
        FORMS[form](file, columns, [cells])


def _read(path: Path, by: By) -> list[dict[str, Any]]:
    """The rows that are made for a method."""
    check_form(path)
    needed = ["sentence_bad", *(name for side in METHODS[by] for name in side if name)]
    scored = [name for _, name in METHODS[by]]
    pairs, others = list[dict[str, Any]](), 0
    try:
        for number, (good, row) in enumerate(read_rows(path, "sentence_good"), 1):
            row = {"sentence_good": good.removesuffix("\n"), **row}
            made = str(row.get(f"{by}_method", any(by in name for name in row)))  # in CSV it is a text
            if by != "sentence" and made.strip().lower() not in ("true", "1", "1.0"):
                others += 1
                continue
            for name in [*needed, *["UID"] * ("UID" in (pairs or [row])[0])]:
                value = row.get(name)
                line = plain(value).removesuffix("\n") if isinstance(value, str) else "\n"
                if "\n" in line or (name in scored and not line.strip()):
                    raise UserError(f"{path}, row {number} has no {name!r} that is a line of text")
                row[name] = line
            pairs.append(row)
    except UserError as error:
        raise type(error)(str(error).partition(": rename one")[0]) from None  # not "or name another with --text_column"
    if not pairs:
        raise UserError(f"{path} has no pairs" + f" for --by {by}" * (by != "sentence"))
    if others:
        logger.warning("%s: %s pairs are not made for --by %s, and are left out", path, f"{others:,}", by)
    return pairs
