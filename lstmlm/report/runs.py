"""Runs as rows and curves: what their directories say, finished or not. Keys that are absent are not shown, unknown ones are ignored."""

import logging
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Required

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict  # which pydantic needs before Python 3.12

from lstmlm.config import PLACES
from lstmlm.console import UserError, one_line
from lstmlm.records import read_json, read_json_lines
from lstmlm.training.run_directory import RunDirectory

ELSEWHERE = (*PLACES, "tracking.")  # beginnings of keys that say where, not what
SEED = "train.seed"
MOST = 1e100  # beyond it a figure is not drawn; a run that diverges has such figures

Count = Annotated[int, Field(ge=0, lt=2**53)]
Metric = float | None  # null stands for what is not finite
Final = Annotated[float, Field(ge=0, le=1e300)]
Metrics = TypedDict(
    "Metrics",
    {
        "step": Required[Count],
        "epoch": Required[Count],
        "tokens": Required[Count],
        "seconds": Annotated[float, Field(ge=0, le=1e12)],
        "train/loss": Metric,
        "train/grad_norm": Metric,
        "train/lr": Metric,
        "train/tokens_per_second": Metric,
        "valid/loss": Metric,
        "valid/ppl": Metric,
    },
    total=False,
)


class Sample(TypedDict):
    """A line of samples.jsonl."""

    step: Count
    epoch: Count
    texts: list[str]


@dataclass(frozen=True)
class Figures:
    """A split's final figures."""

    ppl: Final | None
    columns: Count
    targets: Count | None = None
    bpc: Final | None = None
    protocol: str = "static"


@dataclass(frozen=True)
class Summary:
    """What the report shows of summary.json."""

    valid: Figures
    test: Figures
    parameters: Count
    ranks: Count
    device: str


@dataclass(frozen=True)
class Evaluation:
    """What the report shows of a result of `evaluate --json`."""

    ppl: Final
    protocol: str
    split: str | None = None
    columns: Count | None = None
    targets: Count | None = None
    bpc: Final | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory says.

    Attributes:
        name: The directory's name; its path where another run has the same name.
        config: Dotted keys; what the run's version did not know is at its default.
        lines: Of metrics.jsonl.
        summary: The final figures; None where the run is not finished.
        evaluations: Results of `evaluate --json` in the directory, by the names of their files.
        samples: Sample texts.
    """

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    summary: Summary | None
    evaluations: dict[str, Evaluation]
    samples: list[Sample]

    def points(self, key: str, over: str) -> dict[int, tuple[float, float]]:
        """One metric over another, in the order of the lines; where one of them is absent or cannot be drawn, there is no point.

        Args:
            key: Of the metric.
            over: Key of the axis: `tokens` or `seconds`.

        Returns:
            (axis, metric) at each number of training tokens.
        """
        lines = [line for line in self.lines if over in line and line.get(key) is not None]
        return {line["tokens"]: (line[over], line[key]) for line in lines if abs(line[key]) < MOST}

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the lowest validation perplexity; the first of equal ones."""
        validations = [line for line in self.lines if (line.get("valid/ppl") or MOST) < MOST]
        return min(validations, key=lambda line: line["valid/ppl"], default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the lines."""
        rates = [rate for _, rate in self.points("train/tokens_per_second", "tokens").values()]
        return statistics.median(rates) if rates else None


@dataclass(frozen=True)
class Row:
    """A row of the report: one run, or several that differ in `train.seed` alone.

    Attributes:
        records: The runs, each with a seed of its own.
    """

    records: list[RunRecord]

    @property
    def name(self) -> str:
        """The first run's, and how many seeds there are."""
        seeds = f" ({len(self.records)} seeds)" if len(self.records) > 1 else ""
        return f"{self.records[0].name}{seeds}"

    def config(self, key: str) -> Any:
        """A value of the configuration; of `train.seed` all values."""
        values = [record.config.get(key) for record in self.records]
        return values if key == SEED and len(values) > 1 else values[0]

    def curve(self, key: str, over: str) -> NDArray[np.float64]:
        """One metric over another, where all the runs have it.

        Args:
            key, over: As for `RunRecord.points`.

        Returns:
            (3, n): mean of the axis, mean of the metric, and the metric's standard deviation over the seeds, 0 for one run.
        """
        every = [record.points(key, over) for record in self.records]
        shared = [at for at in every[0] if all(at in points for points in every)]
        values = np.array([[points[at] for at in shared] for points in every]).reshape(len(every), -1, 2)
        deviation = values[..., 1].std(0, ddof=1) if len(every) > 1 else np.zeros(len(shared))
        return np.stack([*values.mean(0).T, deviation])


def read_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Read runs; a directory that holds none, or a broken one, is named in a warning and left out.

    Args:
        paths: Run directories; one that is named twice is read once.

    Returns:
        Rows, in the order of their first runs.

    Raises:
        UserError: None of them holds a run.
    """
    different = {os.path.realpath(path): Path(path) for path in reversed(paths)}
    names = [os.path.basename(real) for real in different]  # noqa: PTH119
    rows: list[tuple[dict[str, Any], list[RunRecord]]] = []  # what decides a run but for its seed, and the runs
    for real, path in reversed(different.items()):
        name = os.path.basename(real)  # noqa: PTH119
        try:
            record = read_run(path, name if names.count(name) == 1 else str(path))
        except Exception as error:  # no run keeps the others from the report, whatever is wrong with it
            reason = str(error) if isinstance(error, UserError) else f"{path} cannot be read: {one_line(error)}"
            logging.getLogger(__name__).warning("%s: left out", reason)
            continue
        decides = {key: value for key, value in record.config.items() if not key.startswith((*ELSEWHERE, SEED))}
        for others, records in rows:
            if others == decides and all(other.config[SEED] != record.config[SEED] for other in records):
                records.append(record)
                break
        else:
            rows.append((decides, [record]))
    if not rows:
        raise UserError(f"no run to report on in {', '.join(map(str, paths))}: name run directories, such as runs/*")
    return [Row(records) for _, records in rows]


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
        if not os.path.lexists(file):
            raise UserError(f"{path} holds no run (no {file.name})")
    finished = os.path.lexists(directory.summary)
    return RunRecord(
        name=_printable(name),
        config=directory.read_config().to_flat_dict(),
        lines=read_json_lines(directory.metrics, Metrics),
        summary=read_json(directory.summary, Summary, others="allow") if finished else None,
        evaluations=_read_evaluations(directory.evaluations),
        samples=read_json_lines(directory.samples, Sample),
    )


def differences(rows: Sequence[Row]) -> list[str]:
    """Keys of the configuration that do not have one value in all rows, in the configuration's order."""
    keys = dict.fromkeys(key for row in rows for key in row.records[0].config if not key.startswith(ELSEWHERE))
    return [key for key in keys if any(row.config(key) != rows[0].config(key) for row in rows)]


def _read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Results in a folder; a file that holds none is named in a warning."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[_printable(path.name)] = read_json(path, Evaluation, others="allow")
        except UserError as error:
            logging.getLogger(__name__).warning("%s: it holds no result of evaluate --json, and is left out", error)
    return results


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)
