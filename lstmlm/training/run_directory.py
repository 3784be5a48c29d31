"""A run's directory: the names of its files, who may write there, and whether the run in it is finished.

config.yaml      the configuration as resolved
metrics.jsonl    one JSON object a line
samples.jsonl    sample texts, one JSON object for each validation
checkpoints/     see `checkpoint`
model/           the best model so far, see `pretrained`
summary.json     the final figures; written last, so it marks a finished run
evaluations/     results of `evaluate --json` that the user put there, for the report
profile/         where the time of some steps went, see `profiling`
.lock            held while a process trains here
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import TypedDict  # which pydantic needs before Python 3.12

from lstmlm.config import RUN_CONFIG, Config
from lstmlm.console import UserError
from lstmlm.data.sources import dataset_name
from lstmlm.files import locked, replace_file, user_path
from lstmlm.records import read_json, read_json_lines, read_yaml, to_json


class Summary(TypedDict):
    """The fields that every `summary.json` has; there are others."""

    valid: dict[str, Any]
    test: dict[str, Any]


class RunDirectory:
    """The places of a run's files below `train.run_dir`, where nothing needs to be."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = user_path(path)
        self.config, self.metrics, self.samples = path / RUN_CONFIG, path / "metrics.jsonl", path / "samples.jsonl"
        self.checkpoints, self.model, self.summary = path / "checkpoints", path / "model", path / "summary.json"
        self.evaluations, self.profile, self.tensorboard = path / "evaluations", path / "profile", path / "tensorboard"
        self.due_model = self.checkpoints / "best.safetensors"
        self._made: list[Path] = []  # made here; removed again where the start fails

    @classmethod
    def new(cls, config: Config) -> "RunDirectory":
        """Make `runs/<UTC time>-<name>`, the directory of a run that names none. Runs that begin in the same second get a number.

        Raises:
            OSError: It cannot be made.
        """
        name = config.tracking.run_name or dataset_name(config.data.dataset).rpartition("/")[2][:100]
        first = Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
        made = [] if first.parent.exists() else [first.parent]
        first.parent.mkdir(exist_ok=True)
        for number in count(1):
            directory = cls(first.with_name(f"{first.name}-{number}") if number > 1 else first)
            with suppress(FileExistsError):
                directory.path.mkdir()
                break
        directory._made = [directory.path, *made]
        return directory

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory and hold its lock within a block. Folders made here are removed again if the block leaves them empty.

        Raises:
            UserError: Another process holds it.
            OSError: It cannot be made.
        """
        made = self._made or [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                raise UserError(f"another process is training in {self.path}: wait for it or name another train.run_dir") from None
            except OSError as error:
                raise UserError(
                    f"cannot lock {lock}: {error.strerror}; train.run_dir must be on a file system with flock, and .lock must not be a link"
                ) from None
            try:
                yield
            finally:
                if made and list(self.path.iterdir()) == [lock]:
                    lock.unlink()
                    with suppress(OSError):  # another run may have begun in one of them
                        for folder in made:
                            folder.rmdir()

    def refuse_unwritable(self) -> None:
        """Refuse a path where no directory can be made, or one that cannot be written to. Makes nothing.

        Raises:
            UserError: What is in the way.
        """
        path = self.path.absolute()
        nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            reason = "writable" if nearest.is_dir() else "a folder"
            raise UserError(f"cannot write {self.path}: {nearest} is not {reason}; name another train.run_dir")

    def refuse_to_overwrite(self) -> None:
        """Refuse a directory that holds a run.

        Raises:
            UserError: Naming what it holds.
        """
        for path in self._present():
            told = f"holds a run already ({path.name}): go on with it with --train.resume true, or"
            try:
                self.read_config()
            except UserError:
                told = f"holds {path.name}, but no run of this project:"
            raise UserError(f"{self.path} {told} name another train.run_dir")

    def refuse_to_start_afresh(self) -> Config | None:
        """Refuse a directory without a checkpoint whose other files show that there was one.

        Returns:
            The configuration of that run; None where there is nothing.

        Raises:
            UserError: Naming what it holds.
        """
        present = self._present()
        if not present:
            return None
        if self.config not in present:
            name = f"{present[0].name} but no {self.config.name}"
            raise UserError(f"{self.path} holds {name}, so no run of this project: name another train.run_dir")
        config = self.read_config()
        steps = [line.get("step") for line in read_json_lines(self.metrics)]
        past_a_save = any(isinstance(step, int) and step > config.train.save_every for step in steps)
        begun = not self.checkpoints.is_dir() and {self.metrics, self.samples, self.model} & {*present}
        if self.summary in present or begun or past_a_save:
            gone = f"the checkpoints of the run in {self.path} are gone"
            raise UserError(f"{gone}: bring back {self.checkpoints}, or name another train.run_dir")
        return config

    def _present(self) -> list[Path]:
        """The files of a run that exist."""
        paths = (self.config, self.metrics, self.samples, self.checkpoints, self.model, self.summary)
        return [path for path in paths if os.path.lexists(path)]

    def read_config(self) -> Config:
        """The configuration that was written here.

        Raises:
            UserError: There is none, or it is damaged.
        """
        return read_yaml(self.config, Config)

    def write_config(self, config: Config) -> None:
        replace_file(self.config, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures; None where the run is not finished.

        Raises:
            UserError: They are damaged.
        """
        return dict(read_json(self.summary, Summary, others="allow")) if os.path.lexists(self.summary) else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        replace_file(self.summary, to_json(summary, indent=2))
