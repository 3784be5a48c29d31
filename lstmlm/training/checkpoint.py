"""Checkpoints: a folder per step that exists whole or not at all, found again, verified, pruned.

    checkpoints/step_00001234/
        state.safetensors    model, optimizer, hidden state of all B columns
        state.json           cursor, running sums, configuration, fingerprints
        manifest.json        size and SHA-256 of the other two; written last: with it the checkpoint is complete

A checkpoint is written into a folder whose name starts with a dot, flushed, and renamed. Nothing in it is a pickle, so
that to load somebody's checkpoint runs no code. A folder counts as a checkpoint only where its name has exactly this form, it
holds these files and no others, and the step in `state.json` is the step of its name. A run resumes from no other folder and
deletes no other folder.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lstmlm.config import Config
from lstmlm.console import UserError
from lstmlm.data.table import Table, Window
from lstmlm.files import cannot_write, read_file, sync_folder, write_file
from lstmlm.records import read_json, to_json

TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"step_(\d{8,})")
_HIDDEN_NAME = re.compile(r"\.step_\d{8,}\.(tmp|old)")

# Configuration keys that a resumed run may change: they do not touch what is computed, other than its rounding.
FREE_KEYS = {
    "train.log_every",
    "train.eval_every",
    "train.patience",
    "train.save_every",
    "train.keep_checkpoints",
    "train.threads",
    "train.cuda_graph",
    "train.compress_gradients",
    "train.timeout_minutes",
    "train.profile",
    "train.run_dir",
    "train.resume",
    "data.cache_dir",
    "data.dataset",  # where the data are; what they are, the fingerprint of the tokens decides
    "data.subset",
    "data.text_column",
}
GROWING_KEYS = {
    "train.epochs",
    "train.max_steps",
}  # may grow, except under the schedule `cosine`, which ends with the run
PLATEAU_KEYS = {"train.eval_every"}  # the schedule plateau counts validations


@dataclass
class Cursor:
    """Where the run stands: what has been done, and so what comes next.

    Attributes:
        epoch: Passes completed.
        row: Next row of the table.
        step: Optimizer steps done.
        segment: Segments done, over the whole run.
        tokens: Targets predicted so far, over all ranks.
        best: Lowest validation perplexity so far.
        best_step: Step of that validation; 0 where a version that did not keep it wrote the checkpoint.
        stale: Validations since the best one.
        rate_cuts: How often the schedule `plateau` has cut the learning rate.
        validated: Step of the last validation.
        owes_validation: Whether a stop cut short the validation that was due at `step`.
    """

    epoch: int = 0
    row: int = 0
    step: int = 0
    segment: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    rate_cuts: int = 0
    validated: int = 0
    owes_validation: bool = False

    def advance(self, window: Window) -> None:
        """One step further."""
        self.row = window.end
        self.step += 1
        self.segment += len(window.segments)
        self.tokens += window.num_targets

    def next_epoch(self) -> None:
        """To the first row of the next pass."""
        self.epoch += 1
        self.row = 0


@dataclass
class Interval:
    """Sums since the last line of training metrics."""

    nll: float = 0.0
    targets: int = 0
    grad_norm: float = 0.0
    updates: int = 0
    seconds: float = 0.0


@dataclass
class Seconds:
    """Where the time of a run went, summed over its starts. Work that a kill destroyed is not counted.

    Attributes:
        total: Wall time since the run directory was opened.
        training: In steps.
        evaluation: In validation and final scoring.
        saving: Of checkpoints and models.
        tracking: Waiting for the trackers.
    """

    total: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    saving: float = 0.0
    tracking: float = 0.0


@dataclass
class Logged:
    """What the trackers go on from.

    Attributes:
        run_id: Of the run, the same over all of its starts.
        resume_count: Starts before this one.
        metrics_bytes: Length of `metrics.jsonl`.
        samples_bytes: Length of `samples.jsonl`.
    """

    run_id: str
    resume_count: int
    metrics_bytes: int
    samples_bytes: int = 0


@dataclass
class Saved:
    """The content of `state.json`.

    Attributes:
        config: Of the run. A key that the writing version did not know has its default.
        data_fingerprint: Of vocabulary and tokens.
        cursor: Where the run stands.
        interval: What is not logged yet.
        tracking: What the trackers go on from.
        versions: Of the packages that decide what is computed.
        seconds: Where the time went.
        scaler: State of fp16's gradient scaler.
        masks: Name of the function that made the dropout masks.
    """

    config: Config
    data_fingerprint: str
    cursor: Cursor
    interval: Interval
    tracking: Logged
    versions: dict[str, str]
    seconds: Seconds = field(default_factory=Seconds)
    scaler: dict[str, Any] | None = None
    masks: str | None = None


@dataclass
class _File:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def publish(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, make it visible in one rename, and only then delete all but the newest `keep`.

    Args:
        folder: `checkpoints/` of a run that this process holds the lock of.
        step: Names the checkpoint.
        tensors: Contiguous, on the CPU.
        values: The fields of `Saved`, as plain values.
        keep: Complete checkpoints that stay, >= 1.

    Raises:
        UserError: The disk is full or refuses, or something that is no checkpoint stands in the way; what was published before is
            untouched.
    """
    target = folder / f"step_{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
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
        if target.exists():  # it is damaged: the run would have resumed from a whole one
            _delete(target)
        temporary.rename(target)
        sync_folder(folder)
        published = [path for path in checkpoints(folder) if _is_ours(path)]
        # Checkpoints of later steps were damaged: the run has resumed from an earlier one.
        newer = published[: published.index(target)]
        for other in newer + published[len(newer) + keep :]:
            _delete(other)
    except OSError as error:
        with suppress(OSError):  # else the next save does it
            sweep(folder)
        raise UserError(
            f"{cannot_write(error)}; what was published before is intact: make room and go on with --train.resume true"
        ) from None
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Everything whose name is exactly a checkpoint's, newest first.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (Path.glob is silent about a folder that cannot be read)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    steps = {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
    return [folder / name for step in sorted(steps, reverse=True) if (name := f"step_{step:08d}") in names]


def whole(folder: Path) -> Iterator[tuple[Path, Saved | str]]:
    """The checkpoints, newest first, each with its values, or with the reason why it is not whole.

    Raises:
        UserError: The folder cannot be read.
    """
    for path in checkpoints(folder):
        try:
            yield path, verify(path)
        except UserError as error:
            yield path, str(error)


def verify(path: Path) -> Saved:
    """Values of a checkpoint.

    Raises:
        UserError: It is not whole; the message says why.
    """
    foreign = _foreign_content(path)
    if foreign:
        raise UserError(foreign)
    manifest = read_json(path / MANIFEST, dict[str, _File])
    for name in (TENSORS, VALUES):
        content, expected = read_file(path / name), manifest.get(name)
        if expected is None:
            raise UserError(f"{MANIFEST} says nothing of {name}")
        if len(content) != expected.bytes:
            raise UserError(f"{name} has {len(content)} bytes instead of {expected.bytes}")
        if hashlib.sha256(content).hexdigest() != expected.sha256:
            raise UserError(f"{name} does not match its checksum")
    saved = read_json(path / VALUES, Saved)
    if saved.cursor.step != _step(path):
        raise UserError(f"it holds step {saved.cursor.step}")
    return saved


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint.

    Raises:
        UserError: They cannot be read.
    """
    try:
        return safetensors.torch.load(read_file(path / TENSORS))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{TENSORS} is damaged: {error}") from None


def check_fit(saved: Saved, tensors: dict[str, Tensor], expected: dict[str, Tensor], table: Table) -> None:
    """Refuse a checkpoint that is not one of this run, whatever its manifest says.

    Args:
        saved: Its values.
        tensors: Its tensors.
        expected: Tensors of the run as it stands now.
        table: Of the training stream.

    Raises:
        UserError: What does not fit.
    """
    for name in sorted(tensors.keys() ^ expected.keys()):
        raise UserError(f"{TENSORS} {'lacks' if name in expected else 'has a foreign'} {name}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise UserError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {expected[name].dtype} {list(expected[name].shape)}"
            )
    cursor, data = saved.cursor, saved.config.data
    rows = data.bptt * saved.config.train.accumulate
    windows = table.num_windows(data.bptt, saved.config.train.accumulate)
    if not 0 <= cursor.row < table.rows or cursor.row % rows:
        raise UserError(f"no step begins at row {cursor.row} of {table.rows}")
    if cursor.step != cursor.epoch * windows + cursor.row // rows:
        raise UserError(f"step {cursor.step} is not the one at row {cursor.row} of epoch {cursor.epoch}")


def check_config(saved: Config, config: Config) -> None:
    """Refuse to go on from a checkpoint of another configuration.

    Args:
        saved: The checkpoint's configuration.
        config: That of the run that wants to go on.

    Raises:
        UserError: Naming the key, its old and its new value.
    """
    old, new = saved.to_flat_dict(), config.to_flat_dict()
    for key in sorted(new):
        before, now = old[key], new[key]
        free = FREE_KEYS - PLATEAU_KEYS if new["optim.schedule"] == "plateau" else FREE_KEYS
        if before == now or key in free or key.startswith("tracking."):
            continue
        if key in GROWING_KEYS and new["optim.schedule"] != "cosine":
            if now is None or (before is not None and now > before):
                continue
            raise UserError(f"cannot resume: {key} was {before} and is {now} now; it may only grow")
        raise UserError(f"cannot resume: {key} was {before} and is {now} now; set it back or start a new train.run_dir")


def check_data(saved: str, fingerprint: str) -> None:
    """Refuse to go on with other data than the checkpoint's.

    Args:
        saved: The checkpoint's fingerprint of vocabulary and tokens.
        fingerprint: That of the run that wants to go on.

    Raises:
        UserError: They differ.
    """
    if saved != fingerprint:
        raise UserError(
            f"cannot resume: the data or its vocabulary differ from the checkpoint's (fingerprint was {saved[:12]}, is "
            f"{fingerprint[:12]}); bring back the old files or start a new train.run_dir"
        )


def sweep(folder: Path) -> None:
    """Delete what a killed save or delete has left behind."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _HIDDEN_NAME.fullmatch(path.name) and not _foreign_content(path):
            _remove(path)


def _delete(path: Path) -> None:
    """Take a checkpoint out of sight in one rename, then delete it: no half-deleted one can be found."""
    hidden = path.with_name(f".{path.name}.old")
    if hidden.exists():
        raise UserError(f"cannot delete {path}: {hidden} is in the way and no checkpoint; move it elsewhere")
    path.rename(hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    """Delete a folder that holds nothing but a checkpoint's files."""
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
    except UserError:
        return True


def _foreign_content(path: Path) -> str | None:
    """Why a path cannot be one of our checkpoints: it is no folder, or holds a file that no checkpoint holds. None where it can."""
    if path.is_symlink() or not path.is_dir():
        return "it is not a folder"
    foreign = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in (TENSORS, VALUES, MANIFEST) or entry.is_symlink() or not entry.is_file()
    )
    return f"it holds {foreign[0]}, which is not of a checkpoint" if foreign else None
