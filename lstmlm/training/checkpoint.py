"""Checkpoints: folders `step_00001234` that exist whole or not at all, found again, verified, pruned; docs/checkpoints.md has the format.

One is written into a folder whose name starts with a dot, flushed, and renamed; its manifest is written last. Nothing in it is a pickle.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lstmlm.config import Config
from lstmlm.console import UserError, print_line
from lstmlm.files import cannot_write, read_file, sync_folder, write_file
from lstmlm.records import read_json, to_json
from lstmlm.training.cursor import Cursor, Interval, Seconds

TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,})")  # eight digits, or more without a leading zero
_HIDDEN_NAME = re.compile(r"\.step_\d{8,}\.(tmp|old)")


@dataclass
class Logged:
    """What the trackers go on from."""

    run_id: str  # the same over all starts of the run
    resume_count: int  # starts before this one
    metrics_bytes: int  # length of `metrics.jsonl`
    samples_bytes: int = 0  # length of `samples.jsonl`


@dataclass
class Saved:
    """The content of `state.json`; what the writing version did not know has its default."""

    config: Config
    data_fingerprint: str  # of vocabulary and tokens
    cursor: Cursor
    interval: Interval  # what is not logged yet
    tracking: Logged
    versions: dict[str, str]  # of the packages that decide what is computed
    seconds: Seconds = field(default_factory=Seconds)
    scaler: dict[str, Any] | None = None  # state of fp16's gradient scaler
    masks: str | None = None  # name of the function that made the dropout masks


def publish(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, make it visible in one rename, and only then delete all but the newest `keep`.

    Args:
        folder: `checkpoints/` of a run that this process holds the lock of.
        tensors: Contiguous, on the CPU.
        values: The fields of `Saved`, as plain values.
        keep: Complete checkpoints that stay, >= 1.

    Raises:
        UserError: The disk is full or refuses, or something that is no checkpoint is in the way; what was published is untouched.
    """
    target = folder / f"step_{step:08d}"
    temporary, aside = folder / f".{target.name}.tmp", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if os.path.lexists(target) and not _is_ours(target):
            raise UserError(f"cannot save: {target} is in the way and no checkpoint of this run; move it elsewhere")
        temporary.mkdir()
        contents = {TENSORS: safetensors.torch.save(tensors), VALUES: to_json(values, indent=2)}
        for name, content in contents.items():
            write_file(temporary / name, content)
        manifest = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
        write_file(temporary / MANIFEST, to_json(manifest, indent=2))
        sync_folder(temporary)
        if target.exists():  # it is damaged, or was saved at this step before a validation that is done now
            aside = target.rename(_hidden(target))
        temporary.rename(target)
        sync_folder(folder)
    except OSError as error:
        with suppress(OSError):  # else the next save does it
            if aside and not target.exists():
                aside.rename(target)
            sweep(folder)
        raise UserError(f"{cannot_write(error)}; what was saved before is intact: make room and go on with --train.resume true") from None
    sweep(folder)
    # What cannot be deleted now, as on NFS a folder with a file that somebody reads, is left to the next save.
    with suppress(OSError, UserError):
        for path in checkpoints(folder):
            if _step(path) > step and _is_ours(path):  # it is damaged: the run has resumed from an earlier one
                _delete(path)
    with suppress(OSError, UserError):
        prune(target, keep)


def prune(newest: Path, keep: int) -> None:
    """Delete the checkpoints before a whole one, all but the last `keep - 1` of them."""
    before = [path for path in checkpoints(newest.parent) if _step(path) < _step(newest) and _is_ours(path)]
    for path in before[keep - 1 :]:
        _delete(path)


def checkpoints(folder: Path) -> list[Path]:
    """Everything whose name is exactly a checkpoint's, newest first."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (Path.glob is silent about a folder that cannot be read)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return sorted((folder / name for name in names if _NAME.fullmatch(name)), key=_step, reverse=True)


def newest_step(folder: Path) -> int:
    """The step of the newest one, whole or not; 0 where there is none."""
    return max(map(_step, checkpoints(folder)), default=0)


def whole(folder: Path) -> Iterator[tuple[Path, Saved]]:
    """The checkpoints that are whole, newest first, each with its values; a line tells of any other."""
    for path in checkpoints(folder):
        try:
            yield path, verify(path)
        except UserError as error:
            pass_over(path, error)


def pass_over(path: Path, error: UserError) -> None:
    """Tell of a damaged checkpoint. One that cannot be read at the moment, as on a file server in trouble, is not damaged: raise that."""
    if _unread(error):
        raise UserError(f"{error}; the checkpoint may be whole: start again when it can be read")
    print_line(f"skipping the damaged checkpoint {path}: {error}")


def verify(path: Path) -> Saved:
    """Values of a checkpoint.

    Raises:
        UserError: It is not whole; the message says why.
    """
    if foreign := _foreign_content(path):
        raise UserError(foreign)
    manifest = read_json(path / MANIFEST, dict[str, dict[str, Any]])
    for name in (TENSORS, VALUES):
        content = read_file(path / name)
        if hashlib.sha256(content).hexdigest() != manifest.get(name, {}).get("sha256"):
            raise UserError(f"{name}, of {len(content)} bytes, is not what {MANIFEST} says")
    saved = read_json(path / VALUES, Saved)
    if saved.cursor.step != _step(path):
        raise UserError(f"it holds step {saved.cursor.step}")
    return saved


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint."""
    try:
        return safetensors.torch.load(read_file(path / TENSORS))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{TENSORS} is damaged: {error}") from None


def restore(folder: Path) -> None:
    """Bring back a checkpoint that a save of the same step had taken out of sight when it was killed. The run's lock is held."""
    for path in folder.glob(".step_*.old"):
        target = path.with_name(path.name[1:-4])
        # Its tensors are what a deletion takes first.
        if _NAME.fullmatch(target.name) and not os.path.lexists(target) and not _foreign_content(path) and (path / TENSORS).exists():
            path.rename(target)


def sweep(folder: Path) -> None:
    """Delete what a killed save or delete has left behind, as far as it can be deleted."""
    with suppress(OSError, UserError):
        for path in folder.iterdir():
            with suppress(OSError, UserError):
                if _HIDDEN_NAME.fullmatch(path.name) and not _foreign_content(path):
                    _remove(path)


def _delete(path: Path) -> None:
    """Take a checkpoint out of sight in one rename, then delete it: no half-deleted one can be found."""
    _remove(path.rename(_hidden(path)))


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    for name in (TENSORS, VALUES, MANIFEST):
        (path / name).unlink(missing_ok=True)
    path.rmdir()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _is_ours(path: Path) -> bool:
    """Whether this run has written the checkpoint at a path, damaged or not. A copy under the name of another step is not ours."""
    if _foreign_content(path):
        return False
    try:
        return read_json(path / VALUES, Saved).cursor.step == _step(path)
    except UserError as error:
        return not _unread(error)


def _unread(error: UserError) -> bool:
    """Whether something is there but could not be read."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def _foreign_content(path: Path) -> str | None:
    """Why a path cannot be a checkpoint: a run resumes from no folder, and deletes none, that holds anything else. None where it can."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return "it is not a folder"
        for entry in path.iterdir():
            if entry.name not in (TENSORS, VALUES, MANIFEST) or not stat.S_ISREG(entry.lstat().st_mode):
                return f"it holds {entry.name}, which is not of a checkpoint"
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return None
