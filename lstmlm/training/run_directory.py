"""A run's directory: the names of its files, who may write there, and whether the run in it is finished.

config.yaml      the configuration as resolved
metrics.jsonl    one JSON object a line
samples.jsonl    sample texts, one JSON object for each validation
checkpoints/     see `checkpoint`
model/           the best model so far, see `pretrained`
summary.json     the final figures; written last, so it marks a finished run
evaluations/     results of `evaluate --json` that somebody put there, for the report
.lock            held while a process trains here
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lstmlm.config import Config
from lstmlm.console import UserError
from lstmlm.files import locked, replace_file, to_json


class RunDirectory:
    """The places of a run's files.

    Args:
        path: `train.run_dir`; nothing needs to be there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.samples = self.path / "samples.jsonl"
        self.summary = self.path / "summary.json"
        self.evaluations = self.path / "evaluations"
        self.tensorboard = self.path / "tensorboard"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory and hold it within a block. Where the block leaves nothing in it, what was made goes again.

        Raises:
            UserError: Another process holds it.
            OSError: It cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                raise UserError(
                    f"another process is training in {self.path}: wait for it or name another train.run_dir"
                ) from None
            try:
                yield
            finally:
                if made and list(self.path.iterdir()) == [lock]:
                    lock.unlink()
                    with suppress(OSError):  # another run may have begun in one of them
                        for folder in made:
                            folder.rmdir()

    def refuse_to_overwrite(self) -> None:
        """Refuse a directory that holds a run.

        Raises:
            UserError: Naming what it holds.
        """
        for path in (self.config, self.metrics, self.samples, self.checkpoints, self.model, self.summary):
            if path.exists():
                raise UserError(
                    f"{self.path} holds a run already ({path.name}): go on with it with --train.resume true, "
                    "or name another train.run_dir"
                )

    def read_config(self) -> dict[str, Any] | None:
        """The configuration that was written here, as sections; None where there is none."""
        return yaml.safe_load(self.config.read_bytes()) if self.config.exists() else None

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration."""
        replace_file(self.config, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures; None where the run is not finished."""
        return json.loads(self.summary.read_bytes()) if self.summary.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        replace_file(self.summary, to_json(summary, indent=2))


def new_run_directory(config: Config) -> str:
    """A name for the directory of a run that names none: `runs/<UTC time>-<name>`."""
    # A Hub id's or folder's last part
    name = config.tracking.run_name or Path(config.data.dataset).expanduser().absolute().name
    return str(Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}")
