"""The events of a run, where people look at them: `metrics.jsonl` always, and the trackers, started through Accelerate."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from lstmlm.config import Config
from lstmlm.console import UserError, print_line
from lstmlm.files import sync_folder
from lstmlm.runtime.distributed import fail_together
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.wandb_tracker import WandbTracker, init_arguments


class Tracker(Protocol):
    """What a tracker does with a run's events. A tracker that needs more than Accelerate's has a file of its own."""

    name: str

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics, `tokens` among them."""

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts of the model after `tokens` tokens."""


class ScalarTracker:
    """One of Accelerate's trackers as it is: metrics over `tokens`, no texts."""

    def __init__(self, tracker: Any) -> None:
        self.name: str = tracker.name
        self._tracker = tracker

    def metrics(self, values: dict[str, Any]) -> None:
        """As `Tracker`."""
        self._tracker.log(values, step=values["tokens"])

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Not shown."""


class Tracking:
    """The events of one run; every rank has one, only the main rank's writes.

    Args:
        config: Of the run, resolved.
        accelerator: Of the run.
        directory: Of the run.
    """

    def __init__(self, config: Config, accelerator: Accelerator, directory: RunDirectory) -> None:
        self._config = config.tracking
        self._accelerator = accelerator
        self._directory = directory
        self._trackers: list[Tracker] = []
        self.run_id: str = uuid.uuid4().hex[:8]
        self.resume_count = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: run id, resume count, and the length of `metrics.jsonl`, flushed to the disk."""
        length = 0
        if self._directory.metrics.exists():
            with self._directory.metrics.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(self._directory.path)
            length = self._directory.metrics.stat().st_size
        return {"run_id": self.run_id, "resume_count": self.resume_count, "metrics_bytes": length}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: lines written after it are cut off."""
        self.run_id = values["run_id"]
        self.resume_count = values["resume_count"] + 1
        path = self._directory.metrics
        if self._accelerator.is_main_process and path.exists():
            os.truncate(path, min(values["metrics_bytes"], path.stat().st_size))

    def start(self, facts: dict[str, Any]) -> None:
        """Start the trackers; every rank calls it.

        Args:
            facts: The resolved configuration and what else a reader of the run should know.

        Raises:
            UserError: A tracker is not installed or cannot start.
        """
        names = self._config.trackers
        if not names:
            return
        for name in names:
            if find_spec(name) is None:
                raise UserError(
                    f"tracker {name} is not installed: pip install {name}, or leave it out of tracking.trackers"
                )
        self._accelerator.log_with = filter_trackers(list(names), self._directory.path)
        # TensorBoard writes to <logging_dir>/<project>
        self._accelerator.project_configuration.logging_dir = str(self._directory.tensorboard)
        is_main = self._accelerator.is_main_process
        facts = facts | {"resume_count": self.resume_count}
        with fail_together(self._accelerator):
            try:
                wandb = (
                    init_arguments(self._config, self._directory.path, self.run_id, facts, is_main)
                    if "wandb" in names
                    else {}
                )
                self._accelerator.init_trackers(self._config.project, init_kwargs={"wandb": wandb})
            except Exception as error:  # each tracker raises its own kinds
                raise UserError(f"cannot start the trackers {names}: {' '.join(str(error).split())}") from None
        if is_main:  # other ranks hold blank trackers
            self._trackers = [
                WandbTracker(tracker.tracker) if tracker.name == "wandb" else ScalarTracker(tracker)
                for tracker in self._accelerator.trackers
            ]

    def metrics(self, values: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same to the trackers.

        Args:
            values: `step`, `epoch`, `tokens`, and any of the metrics.
        """
        if not self._accelerator.is_main_process:
            return
        with self._directory.metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")
        self._tell(lambda tracker: tracker.metrics(values))

    @property
    def wants_samples(self) -> bool:
        """Whether a tracker of this rank shows texts."""
        return any(tracker.name == "wandb" for tracker in self._trackers)

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts of the model after `tokens` tokens, to the trackers."""
        self._tell(lambda tracker: tracker.samples(tokens, texts))

    def _tell(self, event: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                event(tracker)
            except Exception as error:  # each tracker raises its own kinds, and none is worth the run
                print_line(f"warning: {tracker.name} did not take the metrics: {error}")


def git_commit() -> str | None:
    """Commit of the checkout this package is imported from, or None where it is not one."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
