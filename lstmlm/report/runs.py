"""Runs as rows and curves: what their directories say, finished or not. Keys that are absent are not shown, unknown ones are ignored."""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstmlm.config import PLACES
from lstmlm.console import UserError, one_line
from lstmlm.records import read_json_lines
from lstmlm.training.run_directory import RunDirectory

ELSEWHERE = (*PLACES, "tracking.")  # beginnings of keys that say where, not what

Metrics = dict[str, Any]  # a line of metrics.jsonl


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory says.

    Attributes:
        name: The directory's name; its path where another run has the same name.
        config: Dotted keys; what the run's version did not know is at its default.
        lines: Of metrics.jsonl, each with `seconds`, the wall time since the start of the run.
        timed: Whether the run measured these seconds; else they are derived from its tokens/s, and nan where it has none.
        summary: The final figures; None where the run is not finished.
        evaluations: Results of `evaluate --json` found in the directory, each with the `file` it stands in.
        samples: Sample texts: `step`, `epoch`, `tokens`, `texts`.
    """

    name: str
    config: dict[str, Any]
    lines: list[Metrics]
    timed: bool
    summary: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    def curve(self, key: str, over: str) -> tuple[list[float], list[float]]:
        """One metric over another, in the order of the lines; lines that lack one of them, or where one is not finite, are left out.

        Args:
            key: Of the metric.
            over: Key of the axis: `tokens` or `seconds`.

        Returns:
            The axis and the metric, of equal length.
        """
        pairs = [(_number(line.get(over)), _number(line.get(key))) for line in self.lines]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        return [x for x, _ in pairs], [y for _, y in pairs]

    @property
    def best(self) -> Metrics | None:
        """The line of the lowest validation perplexity; the first of equal ones."""
        validations = [line for line in self.lines if math.isfinite(_number(line.get("valid/ppl")))]
        return min(validations, key=lambda line: line["valid/ppl"], default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the lines."""
        rates = self.curve("train/tokens_per_second", "tokens")[1]
        return statistics.median(rates) if rates else None


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Read runs; a directory that holds none, or a broken one, is named in a warning and left out.

    Args:
        paths: Run directories; one that is named twice is read once.

    Raises:
        UserError: None of them holds a run.
    """
    different = {Path(path).resolve(): Path(path) for path in reversed(paths)}
    names = [path.name for path in different]
    records = []
    for real, given in reversed(different.items()):
        try:
            records.append(read_run(given, real.name if names.count(real.name) == 1 else str(given)))
        except UserError as error:
            logging.getLogger(__name__).warning("%s: left out", error)
    if not records:
        raise UserError(f"no run to report on in {', '.join(map(str, paths))}: name run directories, such as runs/*")
    return records


def read_run(path: Path, name: str) -> RunRecord:
    """Read one run.

    Args:
        path: Its directory.
        name: What it is called in the report.

    Raises:
        UserError: There is no run, or one of its files is broken.
    """
    directory = RunDirectory(path)
    for file in (directory.config, directory.metrics):
        if not file.exists():
            raise UserError(f"{path} holds no run (no {file.name})")
    config, summary = directory.read_config(), directory.read_summary()
    lines = read_json_lines(directory.metrics, strict=True)
    timed = all("seconds" in line for line in lines)
    if not timed:
        lines = [line | {"seconds": at} for line, at in zip(lines, _derived_seconds(lines), strict=True)]
    return RunRecord(
        name="".join(letter if letter.isprintable() else "?" for letter in name),
        config=config.to_flat_dict(),
        lines=lines,
        timed=timed,
        summary=summary,
        evaluations=_read_evaluations(directory.evaluations),
        samples=read_json_lines(directory.samples, strict=True),
    )


def differences(records: Sequence[RunRecord]) -> list[str]:
    """Keys of the configuration that do not have one value in all runs, in the configuration's order."""
    keys = dict.fromkeys(key for record in records for key in record.config if not key.startswith(ELSEWHERE))
    return [key for key in keys if any(record.config.get(key) != records[0].config.get(key) for record in records)]


def _read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Results in a folder; a file that holds none is named in a warning."""
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            result = one_line(error)
        if isinstance(result, dict) and "protocol" in result and math.isfinite(_number(result.get("ppl"))):
            results.append(result | {"file": path.name})
        else:
            logging.getLogger(__name__).warning("%s holds no result of evaluate --json (ppl, protocol): left out", path)
    return results


def _derived_seconds(lines: Sequence[Metrics]) -> list[float]:
    """Wall time at each line from tokens and tokens/s: that of training alone; nan where no line has a rate."""
    import numpy as np

    at_tokens, at_seconds = [0.0], [0.0]
    for line in lines:
        tokens, rate = _number(line.get("tokens")), _number(line.get("train/tokens_per_second"))
        if tokens > at_tokens[-1] and rate > 0:
            at_seconds.append(at_seconds[-1] + (tokens - at_tokens[-1]) / rate)
            at_tokens.append(tokens)
    if len(at_tokens) == 1:
        return [math.nan] * len(lines)
    return [float(np.interp(_number(line.get("tokens")), at_tokens, at_seconds)) for line in lines]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
