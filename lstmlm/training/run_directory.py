"""A run's directory: the names of its files (docs/running.md says what they are), who may write there, and what is there already."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # which pydantic needs before Python 3.12

from lstmlm.config import Config
from lstmlm.console import UserError
from lstmlm.data.sources import dataset_name
from lstmlm.files import RUN_FILES, locked, replace_file, user_path
from lstmlm.records import read_json, read_yaml, to_json, to_yaml


class Summary(TypedDict):
    """The fields that every `summary.json` has; there are others."""

    valid: dict[str, Any]
    test: dict[str, Any]


class RunDirectory:
    """The paths of a run's files below `train.run_dir`; none of them needs to exist."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = user_path(path)
        own = (path / name for name in RUN_FILES)
        self.config, self.metrics, self.samples, self.summary, self.lock, self.checkpoints, self.model = own
        self.evaluations, self.profile, self.tensorboard = path / "evaluations", path / "profile", path / "tensorboard"
        self.earlier_best = self.checkpoints / "best.safetensors"
        self._made: list[Path] = []  # made here; removed again where the start fails
        self._held: Callable[[], bool] = lambda: False  # whether the lock is still this process's

    @classmethod
    def new(cls, config: Config) -> "RunDirectory":
        """Make `runs/<UTC time>-<name>`, the directory of a run that names none. Runs that begin in the same second get a number."""
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
        """Make the directory and hold its lock within a block. What was made here is removed again if the block fails or leaves no run."""
        made = self._made or [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        new, failed = not os.path.lexists(self.lock), True
        with ExitStack() as stack:
            try:
                self._held = stack.enter_context(locked(self.lock, wait=False))
            except BlockingIOError:
                raise UserError(f"another process is training in {self.path}: wait for it or name another train.run_dir") from None
            except OSError as error:
                needed = "train.run_dir must be on a file system with flock, and .lock must not be a link"
                raise UserError(f"cannot lock {self.lock}: {error.strerror}; {needed}") from None
            try:
                self._refuse_links()
                yield
                failed = False
            finally:
                if new and self._held() and (failed or not os.path.lexists(self.config)):
                    with suppress(OSError):  # something else may be in one of them
                        self.lock.unlink()
                        for folder in made:
                            folder.rmdir()

    def _refuse_links(self) -> None:
        """Refuse a run with links in place of what a run appends to, cuts and replaces: its maker must not name files of this machine."""
        for path in (self.config, self.metrics, self.samples, self.summary, self.model):
            if path.is_symlink():
                raise UserError(f"{path} is a link, and a run writes through none: put what it leads to in its place")

    def refuse_lost(self) -> None:
        """Refuse to write into a directory that somebody has deleted or moved since it was locked: another run may be there now."""
        if not self._held():
            raise UserError(f"{self.path} was deleted or moved while this run wrote there, and another may be there now: this one ends")

    def refuse_unusable(self) -> None:
        """Refuse a path where no directory can be made, that cannot be written to, or where another process is training. Makes nothing."""
        path = self.path.absolute()
        nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            reason = "writable" if nearest.is_dir() else "a folder"
            raise UserError(f"cannot write {self.path}: {nearest} is not {reason}; name another train.run_dir")
        if self.lock.exists():
            with self.held():
                pass

    def earlier_run(self) -> Config | None:
        """The configuration of the run that is here; None where there is nothing of a run.

        Raises:
            UserError: There are files of a run's names, but no run of this project.
        """
        paths = (self.config, self.metrics, self.samples, self.checkpoints, self.model, self.summary)
        present = [path.name for path in paths if os.path.lexists(path)]
        try:
            return self.read_config() if present else None
        except UserError as error:
            raise UserError(f"{self.path} holds {present[0]}, but no run of this project: name another train.run_dir ({error})") from None

    def read_config(self) -> Config:
        """The configuration that was written here."""
        return read_yaml(self.config, Config)

    def write_config(self, config: Config) -> None:
        replace_file(self.config, to_yaml(config.to_dict()))

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures; None where the run is not finished."""
        return dict(read_json(self.summary, Summary, others="allow")) if os.path.lexists(self.summary) else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        replace_file(self.summary, to_json(summary, indent=2))
