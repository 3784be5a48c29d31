"""Runs as rows and curves: what their directories say, finished or not. Keys that are absent are not shown, unknown ones are ignored."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Required

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict  # which pydantic needs before Python 3.12

from lstmlm.config import PLACES
from lstmlm.console import UserError, one_line, printable
from lstmlm.records import read_json, read_json_lines
from lstmlm.training.run_directory import RunDirectory

ELSEWHERE = (*PLACES, "tracking.")  # beginnings of keys that say where, not what
SEED = "train.seed"
MOST = 1e100  # beyond it a figure is not drawn; a run that diverges has such figures
logger = logging.getLogger(__name__)

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
    """What the report shows of a split's final figures, or of a result of `evaluate --json`."""

    ppl: Final | None
    columns: Count
    targets: Count | None = None
    bpc: Final | None = None
    protocol: str = "static"
    split: str | None = None
    text: str | None = None  # the file that was scored in place of a split
    reset: str = "never"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What the report shows of summary.json."""

    valid: Figures
    test: Figures
    parameters: Count
    ranks: Count
    device: str


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory says."""

    name: str  # the directory's; its path where another run has the same name
    config: dict[str, Any]  # dotted keys; what the run's version did not know is at its default
    lines: list[dict[str, Any]]  # of metrics.jsonl
    summary: Summary | None  # None where the run is not finished
    evaluations: dict[str, Figures]  # results of `evaluate --json`, by the names of their files
    samples: list[Sample]

    def points(self, key: str, over: str) -> dict[int, tuple[float, float]]:
        """(axis, metric) at each step, in the order of the lines; where one of them is absent or cannot be drawn, there is none. `over` is
        the key of the axis: `tokens`, `seconds` or `epoch`. Seeds may differ in their tokens at a step (`data.bptt_jitter`)."""
        lines = [line for line in self.lines if over in line and line.get(key) is not None]
        return {line["step"]: (line[over], line[key]) for line in lines if abs(line[key]) < MOST}

    @property
    def best(self) -> tuple[float, float] | None:
        """Epoch and perplexity of the best validation, the first of equal ones."""
        return min(self.points("valid/ppl", "epoch").values(), key=lambda point: point[1], default=None)


@dataclass(frozen=True)
class Row:
    """A row of the report: one run, or several that differ in `train.seed` alone."""

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
        """As `RunRecord.points`, where all the runs have one: (3, n), mean of the axis, mean of the metric, and the metric's standard
        deviation over the seeds, 0 for one run."""
        every = [record.points(key, over) for record in self.records]
        shared = [at for at in every[0] if all(at in points for points in every)]
        values = np.array([[points[at] for at in shared] for points in every]).reshape(len(every), -1, 2)
        deviation = values[..., 1].std(0, ddof=1) if len(every) > 1 else np.zeros(len(shared))
        return np.stack([*values.mean(0).T, deviation])


def read_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Read runs, as rows in the order of their first runs. A directory that holds none, or a broken one, is named in a warning and left
    out; one that is named twice is read once.

    Raises:
        UserError: None of them holds a run.
    """
    different: dict[str, Path] = {}
    for path in paths:
        different.setdefault(os.path.realpath(path), Path(path))
    names = Counter(Path(real).name for real in different)
    runs: Counter[tuple[str, int]] = Counter()  # of the same configuration and the same seed
    rows: dict[tuple[str, int], list[RunRecord]] = {}
    for real, path in different.items():
        name = Path(real).name
        try:
            record = read_run(path, name if names[name] == 1 else str(path))
        except Exception as error:  # no run keeps the others from the report, whatever is wrong with it
            reason = str(error) if isinstance(error, UserError) else f"{path} cannot be read: {one_line(error)}"
            logger.warning("%s: left out", reason)
            continue
        decides = str([(key, value) for key, value in record.config.items() if not key.startswith((*ELSEWHERE, SEED))])
        runs[decides, record.config[SEED]] += 1
        rows.setdefault((decides, runs[decides, record.config[SEED]]), []).append(record)
    if not rows:
        raise UserError(f"no run to report on in {', '.join(map(str, paths))}: name run directories, such as runs/*")
    return [Row(records) for records in rows.values()]


def read_run(path: Path, name: str) -> RunRecord:
    """Read one run, which is called `name` in the report.

    Raises:
        UserError: There is no run, or one of its files is broken.
    """
    directory = RunDirectory(path)
    evaluations = {}
    for file in sorted(directory.evaluations.glob("*.json")):
        try:
            evaluations[printable(file.name)] = read_json(file, Figures, others="allow")
        except UserError as error:
            logger.warning("%s: it holds no result of evaluate --json, and is left out", error)
    return RunRecord(
        name=printable(name),
        config=directory.read_config().to_flat_dict(),
        lines=read_json_lines(directory.metrics, Metrics),
        summary=read_json(directory.summary, Summary, others="allow") if os.path.lexists(directory.summary) else None,
        evaluations=evaluations,
        samples=read_json_lines(directory.samples, Sample),
    )


def differences(rows: Sequence[Row]) -> list[str]:
    """Keys of the configuration that do not have one value in all rows, in the configuration's order."""
    keys = dict.fromkeys(key for row in rows for key in row.records[0].config if not key.startswith(ELSEWHERE))
    return [key for key in keys if any(row.config(key) != rows[0].config(key) for row in rows)]
