"""Run directories as training leaves them, written by hand."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmlm import load_config
from lstmlm.records import to_json

WriteRun = Callable[..., Path]


@functools.cache
def config_file(overrides: tuple[str, ...]) -> str:
    return yaml.safe_dump(load_config(overrides).to_dict())


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run; keyword `overrides` are arguments of its configuration."""

    def write(
        name: str,
        lines: Sequence[dict[str, Any]],
        *overrides: str,
        summary: dict[str, Any] | None = None,
        samples: Sequence[dict[str, Any]] = (),
        evaluations: dict[str, Any] | None = None,
    ) -> Path:
        path = tmp_path / name
        (path / "evaluations").mkdir(parents=True)
        (path / "config.yaml").write_text(config_file(overrides))
        for file, values in (("metrics.jsonl", lines), ("samples.jsonl", samples)):
            (path / file).write_text("".join(json.dumps(line) + "\n" for line in values))
        if summary is not None:
            (path / "summary.json").write_bytes(to_json(summary))
        for file, result in (evaluations or {}).items():
            (path / "evaluations" / file).write_text(json.dumps(result))
        return path

    return write


def metric_lines(count: int, best_ppl: float = 90.0, speed: float = 1000.0) -> list[dict[str, Any]]:
    """A run's lines: `count` of training, a validation after every tenth, each better than the one before."""
    lines: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        at = {"step": 100 * i, "epoch": 1 + (i - 1) // 10, "tokens": 60_000 * i, "seconds": 60_000 * i / speed}
        train = {"train/loss": 5 + 3 / i, "train/grad_norm": 0.3, "train/lr": 1e-3, "train/tokens_per_second": speed}
        lines.append(at | train)
        if i % 10 == 0:
            lines.append(at | {"valid/loss": 5.0, "valid/ppl": best_ppl * (1 + (count - i) / count)})
    return lines


SUMMARY = {
    "step": 2000,
    "valid": {"loss": 4.5, "ppl": 90.02, "targets": 100, "columns": 1, "bpc": 1.25},
    "test": {"loss": 4.4, "ppl": 81.45, "targets": 90, "columns": 1},
    "parameters": 3_520_000,
    "ranks": 2,
    "device": "cpu",
}
