"""Checkpoints: a folder per step that exists whole or not at all, found again, verified, pruned.

    checkpoints/step_00001234/
        state.safetensors    model, optimizer, hidden state of all B columns
        state.json           cursor, running sums, configuration, fingerprints
        manifest.json        size and SHA-256 of the other two; written last: with it the checkpoint is complete

A checkpoint is written into a folder whose name starts with a dot, flushed, and renamed. Nothing in it is a pickle, so
that to load somebody's checkpoint runs no code.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lstmlm.config import Config, flatten
from lstmlm.console import UserError
from lstmlm.data.table import Window
from lstmlm.files import cannot_write, sync_folder, write_file

TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"

# Configuration keys that a resumed run may change: they do not touch what is computed, other than its rounding.
FREE_KEYS = {
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.threads",
    "train.cuda_graph",
    "train.compress_gradients",
    "train.timeout_minutes",
    "train.run_dir",
    "train.resume",
    "data.cache_dir",
    "data.dataset",  # where the data are; what they are, the fingerprint of the tokens decides
    "data.subset",
    "data.text_column",
}
GROWING_KEYS = {"train.epochs", "train.max_steps"}  # may grow under a constant schedule


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
        validated: Step of the last validation.
        owes_validation: Whether a stop cut short the validation that was due at `step`.
    """

    epoch: int = 0
    row: int = 0
    step: int = 0
    segment: int = 0
    tokens: int = 0
    best: float | None = None
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


def publish(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, make it visible in one rename, and only then delete all but the newest `keep`.

    Args:
        folder: `checkpoints/` of a run that this process holds the lock of.
        step: Names the checkpoint.
        tensors: Contiguous, on the CPU.
        values: Anything JSON can hold.
        keep: Complete checkpoints that stay, >= 1.

    Raises:
        UserError: The disk is full or refuses; what was published before is untouched.
    """
    target = folder / f"step_{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        _sweep(folder)
        temporary.mkdir()
        contents = {TENSORS: safetensors.torch.save(tensors), VALUES: _json(values)}
        for name, content in contents.items():
            write_file(temporary / name, content)
        manifest = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
        write_file(temporary / MANIFEST, _json(manifest))
        sync_folder(temporary)
        if target.exists():  # damaged, or the run would have gone on from it: out of the way
            _delete(target)
        temporary.rename(target)
        sync_folder(folder)
        published = checkpoints(folder)
        # Newer ones were damaged: the run went on from before them.
        newer = published[: published.index(target)]
        for other in newer + published[len(newer) + keep :]:
            _delete(other)
    except OSError as error:
        _sweep(folder, ignore_errors=True)
        raise UserError(
            f"{cannot_write(error)}; what was published before is intact: make room and go on with --train.resume true"
        ) from None
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, newest first, complete or not."""
    return sorted(folder.glob("step_*"), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a line for each newer one that is damaged."""
    damaged: list[str] = []
    for path in checkpoints(folder):
        fault = find_fault(path)
        if fault is None:
            return path, damaged
        damaged.append(f"skipping the damaged checkpoint {path}: {fault}")
    return None, damaged


def find_fault(path: Path) -> str | None:
    """What keeps a checkpoint from being complete, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        for name in (TENSORS, VALUES):
            content = (path / name).read_bytes()
            if len(content) != manifest[name]["bytes"]:
                return f"{name} has {len(content)} bytes instead of {manifest[name]['bytes']}"
            if hashlib.sha256(content).hexdigest() != manifest[name]["sha256"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    return None


def load_values(path: Path) -> dict[str, Any]:
    """Values of a complete checkpoint."""
    return json.loads((path / VALUES).read_bytes())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a complete checkpoint."""
    return safetensors.torch.load((path / TENSORS).read_bytes())


def check_config(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another configuration.

    Args:
        saved: The checkpoint's configuration, as sections.
        config: That of the run that wants to go on.

    Raises:
        UserError: Naming the key, its old and its new value.
    """
    # A key that the checkpoint's version did not have was at its default.
    old, new = Config().to_flat_dict() | flatten(saved), flatten(config)
    for key in sorted(new):
        before, now = old[key], new[key]
        if before == now or key in FREE_KEYS or key.startswith("tracking."):
            continue
        if key in GROWING_KEYS and new["optim.schedule"] == "constant":
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


def _delete(path: Path) -> None:
    """Take a checkpoint out of sight in one rename, then delete it: no half-deleted one can be found."""
    hidden = path.with_name(f".{path.name}.old")
    if hidden.exists():
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def _sweep(folder: Path, ignore_errors: bool = False) -> None:
    """Delete what a killed save or delete has left behind."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=ignore_errors)


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=2).encode()
