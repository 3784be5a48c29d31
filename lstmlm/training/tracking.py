"""Writes the events of a run where people look: always to two files of JSON lines, and to the trackers that Accelerate starts."""

import os
import sys
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from lstmlm.config import Config
from lstmlm.console import UserError, one_line, print_line
from lstmlm.files import sync_folder
from lstmlm.records import append_line, cut_lines
from lstmlm.runtime.distributed import fail_together
from lstmlm.training.checkpoint import Logged
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.trackers import KINDS, Tracker, wandb_arguments

PROJECT = "lstmlm"  # where neither the configuration nor WANDB_PROJECT names one


class Tracking:
    """Sends the events of a run to the files and the trackers. Every rank has one; only the main rank's writes."""

    def __init__(self, config: Config, accelerator: Accelerator, directory: RunDirectory) -> None:
        self._config = config.tracking
        self._accelerator = accelerator
        self._directory = directory
        self._trackers: list[Tracker] = []
        # An agent of a W&B sweep names the run.
        self.run_id: str = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        self.resume_count = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: run id, resume count, and the lengths of the two files, flushed to the disk."""
        lengths = {key: _flushed_length(path) for key, path in self._files.items()}
        return {"run_id": self.run_id, "resume_count": self.resume_count, **lengths}

    def load_state_dict(self, values: Logged) -> None:
        """Go on from where `state_dict` was taken. Lines written after it are cut off."""
        self.run_id = os.environ.get("WANDB_RUN_ID") or values.run_id
        self.resume_count = values.resume_count + 1
        if self._accelerator.is_main_process:
            lengths = asdict(values)
            for key, path in self._files.items():
                if not cut_lines(path, lengths[key]):
                    print_line(f"warning: {path} was damaged: lines from before the checkpoint are lost; the run goes on")

    @property
    def _files(self) -> dict[str, Path]:
        """The two files of JSON lines, by the key of their length in a checkpoint."""
        return {"metrics_bytes": self._directory.metrics, "samples_bytes": self._directory.samples}

    def start(self, facts: dict[str, Any]) -> None:
        """Start the trackers, and tell them the facts; every rank calls it."""
        names = self._config.trackers
        if not names:
            return
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            raise UserError(
                f"not installed: {', '.join(missing)}; pip install 'lstmlm[{','.join(missing)}]', or leave out of tracking.trackers "
                "what you do not need"
            )
        self._accelerator.log_with = filter_trackers(list(names), self._directory.path)
        # TensorBoard writes to <logging_dir>/<project>
        self._accelerator.project_configuration.logging_dir = str(self._directory.tensorboard)
        is_main = self._accelerator.is_main_process
        facts = facts | {"resume_count": self.resume_count}
        run_dir = self._directory.path
        arguments: dict[str, dict[str, Any]] = {}
        with fail_together(self._accelerator), redirect_stdout(sys.stderr):  # trackio prints there
            try:
                if "wandb" in names:
                    arguments["wandb"] = wandb_arguments(self._config, run_dir, self.run_id, facts, is_main)
                if "trackio" in names:  # which knows a run by its name
                    run_name = f"{self._config.run_name or run_dir.name}-{self.run_id}"
                    group = self._config.group
                    arguments["trackio"] = {"name": run_name, "group": group, "config": facts, "resume": "allow"}
                project = self._config.project or os.environ.get("WANDB_PROJECT") or PROJECT
                self._accelerator.init_trackers(project, init_kwargs=arguments)
            except Exception as error:  # each tracker raises its own kinds
                for started in self._accelerator.trackers:
                    with suppress(Exception):  # some have not started
                        started.finish()
                raise UserError(f"cannot start the trackers {names}: {one_line(error)}") from None
        if is_main:  # other ranks hold blank trackers
            self._trackers = [KINDS[tracker.name](tracker, self._config, facts) for tracker in self._accelerator.trackers]

    def metrics(self, values: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same to the trackers: `step`, `epoch`, `tokens`, and any of the metrics."""
        self._write_line(self._directory.metrics, values)
        self.tell(lambda tracker: tracker.metrics(values))

    def samples(self, position: dict[str, int], texts: list[str]) -> None:
        """One line of `samples.jsonl`, and the texts to the trackers; `position` is the `step`, `epoch` and `tokens` of the model."""
        self._write_line(self._directory.samples, {**position, "texts": texts})
        self.tell(lambda tracker: tracker.samples(position["tokens"], texts))

    def finish(self, status: int) -> None:
        """End the trackers' runs, once, with the exit status of the run: 0, 1, or 128 + signal."""
        with redirect_stdout(sys.stderr):
            self.tell(lambda tracker: tracker.finish(status))
        self._trackers = []
        self._accelerator.trackers.clear()

    def _write_line(self, path: Path, values: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            append_line(path, values)

    def tell(self, event: Callable[[Tracker], None]) -> None:
        """Tell each tracker of an event. One that fails is named, and the run goes on."""
        for tracker in self._trackers:
            try:
                event(tracker)
            except Exception as error:  # each tracker raises its own kinds, and none is worth the run
                print_line(f"warning: {tracker.name} failed: {one_line(error)}")


def _flushed_length(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return path.stat().st_size
