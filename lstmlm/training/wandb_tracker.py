"""Weights & Biases: how a run is started there, and how its events are shown."""

import os
from pathlib import Path
from typing import Any

from lstmlm.config import TrackingConfig
from lstmlm.console import print_line


class WandbTracker:
    """The events of a run as W&B shows them; `tokens` is the axis, so that runs of any batch size compare.

    Args:
        run: The W&B run, started.
    """

    name = "wandb"

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        run.define_metric("valid/ppl", step_metric="tokens", summary="min")

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics. Without a step: W&B drops steps that go backwards after a resume."""
        self._run.log(values)

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts, as a table."""
        import wandb

        self._run.log(
            {"tokens": tokens, "samples": wandb.Table(["tokens", "text"], [[tokens, text] for text in texts])}
        )


def init_arguments(
    config: TrackingConfig, run_dir: Path, run_id: str, facts: dict[str, Any], is_main: bool
) -> dict[str, Any]:
    """Arguments of `wandb.init`: the same run again after a resume, and never a question at the terminal.

    Args:
        config: Of the trackers.
        run_dir: Of the run.
        run_id: Of the run, the same over all of its starts.
        facts: What a reader of the run should know.
        is_main: Whether this process is the one that logs.
    """
    mode = config.mode
    if mode == "auto" and "WANDB_MODE" not in os.environ and is_main:
        import wandb

        # Never a prompt: it would block a cluster job.
        found = wandb.login(prompt=False, verify=False)
        mode = "online" if found else "offline"
        if not found:
            print_line(f"no W&B key found: logging offline; later: wandb sync {run_dir}/wandb/offline-run-*")
    return {
        "id": run_id,
        "resume": "allow",
        "name": config.run_name or run_dir.name,
        "group": config.group,
        "tags": config.tags,
        "dir": str(run_dir),
        "config": facts,
        **({"mode": mode} if mode != "auto" else {}),
    }
