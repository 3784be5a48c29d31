"""Minimal pairs: does a model find the good sentence of each pair likelier than the bad one? (BLiMP, Warstadt et al., 2020.)"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from lstmlm.console import UserError, check
from lstmlm.evaluation.perplexity import StaticScorer, Stretches
from lstmlm.files import Output, read_file
from lstmlm.model.pretrained import SavedModel, load

FIELDS = ("UID", "sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Pair:
    """Two sentences and their scores.

    Attributes:
        UID: What the pair tests.
        sentence_good: The acceptable sentence.
        sentence_bad: The other one.
        surprisal_good: -log2 of the good sentence's probability, `<eos>` included: bits.
        surprisal_bad: Of the bad one.
        outcome: `right` where the good sentence is likelier; `tie` where both have the same probability, as two sentences have that differ
            in unknown words alone; else `wrong`.
        words: Tokens of both sentences, without `<eos>`.
        unknown: How many of these are `<unk>`.
    """

    UID: str
    sentence_good: str
    sentence_bad: str
    surprisal_good: float
    surprisal_bad: float
    outcome: str
    words: int
    unknown: int


@dataclass(frozen=True)
class Summary:
    """Pairs of one UID, or all of them.

    Attributes:
        pairs: How many.
        accuracy: Share of pairs whose outcome is `right`, in [0, 1].
        ties: How many pairs are a `tie`.
        unknown: Share of the pairs' tokens that are `<unk>`, in [0, 1].
    """

    pairs: int
    accuracy: float
    ties: int
    unknown: float


def score_pairs(file: str | Path, model: str | Path | SavedModel | None = None, raw: bool = False) -> list[Pair]:
    """Score the pairs of a file, each sentence alone, after `<eos>` and up to its own `<eos>`.

    Args:
        file: JSON lines with `sentence_good`, `sentence_bad` and `UID`, in UTF-8.
        model, raw: As for `load`. BLiMP's sentences are raw English.

    Raises:
        UserError: The file or the model cannot be read, or a line is not a pair.
    """
    read = _read(Path(file))
    saved = load(model, raw)
    vocabulary = saved.text_vocabulary
    sentences = [vocabulary.encode(sentence) for _, good, bad in read for sentence in (good, bad)]
    starts = [0, *accumulate(map(len, sentences))]
    stretches = Stretches(lambda columns: StaticScorer(saved.model, columns), vocabulary.eos, saved.device)
    nll = stretches.all(torch.tensor([i for ids in sentences for i in ids]), starts[:-1])
    if not nll.isfinite().all():
        raise UserError("the model's scores are not finite: its weights are far too large")
    sums = [part.double().sum().item() for part in nll.split([len(ids) for ids in sentences])]
    pairs = []
    for number, (uid, good, bad) in enumerate(read):
        good_ids, bad_ids = sentences[2 * number : 2 * number + 2]
        good_nll, bad_nll = sums[2 * number : 2 * number + 2]
        # Like sentences in other columns may differ by rounding.
        tie = good_ids == bad_ids or good_nll == bad_nll
        pairs.append(
            Pair(
                uid,
                good,
                bad,
                good_nll / math.log(2),
                bad_nll / math.log(2),
                "tie" if tie else "right" if good_nll < bad_nll else "wrong",
                len(good_ids) + len(bad_ids) - 2,
                good_ids.count(vocabulary.unk) + bad_ids.count(vocabulary.unk),
            )
        )
    return pairs


def summarize(pairs: Sequence[Pair]) -> dict[str, Summary]:
    """A summary for each UID in the order of the file, and `all`, the pairs together."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.UID, []).append(pair)
    return {name: _summary(group) for name, group in [*groups.items(), ("all", list(pairs))]}


def write_pairs(output: Output, pairs: Sequence[Pair]) -> None:
    """Write a line of JSON for each pair.

    Raises:
        UserError: It cannot be written.
    """
    lines = [json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs]
    output.write("".join(f"{line}\n" for line in lines).encode())


def _summary(pairs: Sequence[Pair]) -> Summary:
    outcomes = [pair.outcome for pair in pairs]
    words = sum(pair.words for pair in pairs)
    return Summary(
        pairs=len(pairs),
        accuracy=outcomes.count("right") / len(pairs),
        ties=outcomes.count("tie"),
        unknown=sum(pair.unknown for pair in pairs) / words if words else 0.0,
    )


def _read(path: Path) -> list[tuple[str, str, str]]:
    """UID, good and bad sentence of each line."""
    check(path.exists(), f"there is no file {path}")
    try:
        lines = read_file(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: convert it first") from None
    pairs = [_pair(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise UserError(f"{path} has no pairs")
    return pairs


def _pair(line: str, place: str) -> tuple[str, str, str]:
    try:
        row: Any = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}") from None
    for name in FIELDS:
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise UserError(f"{place} has no text {name!r}: a pair is an object with {', '.join(FIELDS)}")
    return row["UID"], row["sentence_good"], row["sentence_bad"]
