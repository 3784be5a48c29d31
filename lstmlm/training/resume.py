"""How a run goes on: which checkpoint it takes, and what may have changed since that was written."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lstmlm.config import Config, as_written
from lstmlm.console import UserError, print_line
from lstmlm.data.table import Window
from lstmlm.model.dropout import MASKS
from lstmlm.model.pretrained import VOCABULARY
from lstmlm.records import read_json_lines
from lstmlm.training import checkpoint
from lstmlm.training.checkpoint import TENSORS, Saved, checkpoints, load_tensors, whole
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.step import TrainStep

# Configuration keys that a resumed run may change: they do not touch what is computed, other than its rounding. Those of the
# data only say where they are; the fingerprint of the tokens decides whether they are the same.
FREE_KEYS = set(
    """
    train.log_every train.eval_every train.patience train.save_every train.keep_checkpoints train.threads train.cuda_graph
    train.compress_gradients train.timeout_minutes train.profile train.run_dir train.resume train.dry_run
    data.cache_dir data.dataset data.subset data.text_column
    """.split()
)
GROWING_KEYS = {"train.epochs", "train.max_steps"}  # may grow, except under a schedule that ends with the run
ENDING = ("cosine", "one_cycle")


class Past(NamedTuple):
    """What a run's directory holds of it."""

    saved: Saved | None = None  # values of the newest checkpoint; None where the run starts afresh
    found: Iterator[tuple[Path, Saved]] = iter(())  # the checkpoints to go on from, as `candidates` gives them
    summary: dict[str, Any] | None = None  # final figures of a run that has nothing left to do


def find_past(config: Config, directory: RunDirectory) -> Past:
    """Find what a run goes on from, and refuse a directory in which it must not begin. Nothing in it is changed."""
    if not config.train.resume:
        if directory.earlier_run() is not None:
            raise UserError(f"{directory.path} holds a run already: go on with it with --train.resume true, or name another train.run_dir")
        return Past()
    found = candidates(config, directory)
    first = next(found, None)
    if first is None:
        print_line(f"no checkpoint in {directory.path} yet: starting afresh; if a run is to go on, check train.run_dir")
        return Past()
    saved, summary = first[1], None
    try:
        if saved.cursor.ended(config.train):
            summary = directory.read_summary()
    except UserError as error:
        print_line(f"{error}; scoring the model again")
    if summary is not None:
        print_line(f"{directory.path} is finished already")
    return Past(saved, chain([first], found), summary)


def own_vocabulary(directory: RunDirectory, saved: Saved | None) -> Path | None:
    """The file of the vocabulary in the model of a run that goes on; None where there is none yet."""
    own = directory.model / VOCABULARY
    return own if saved is not None and own.exists() else None


def candidates(config: Config, directory: RunDirectory) -> Iterator[tuple[Path, Saved]]:
    """The checkpoints that a run may go on from, newest first, each with its values; none where the run starts afresh.

    A damaged one is passed over with a line; one of another configuration is refused, and so is a run whose checkpoints are gone.
    """
    folder = directory.checkpoints
    if not checkpoints(folder):
        if (earlier := directory.earlier_run()) is not None:
            _refuse_lost_checkpoints(earlier, directory)
            check_config(earlier, config)
        return
    for path, saved in whole(folder):
        check_config(saved.config, config)
        yield path, saved
    raise UserError(f"no checkpoint in {folder} is whole: name another train.run_dir to start afresh")


def _refuse_lost_checkpoints(earlier: Config, directory: RunDirectory) -> None:
    """Refuse a directory without a checkpoint whose other files show that there was one."""
    begun = any(path.exists() for path in (directory.metrics, directory.samples, directory.model))
    steps = [line.get("step") for line in read_json_lines(directory.metrics)]
    past_a_save = any(isinstance(step, int) and step > earlier.train.save_every for step in steps)
    if directory.summary.exists() or past_a_save or (begun and not directory.checkpoints.is_dir()):
        gone = f"the checkpoints of the run in {directory.path} are gone"
        raise UserError(f"{gone}: bring back {directory.checkpoints}, or name another train.run_dir")


def load_newest_that_fits(
    found: Iterator[tuple[Path, Saved]], fingerprint: str, train_step: TrainStep, keep: int
) -> tuple[Saved, dict[str, Tensor]]:
    """Values and tensors of the first checkpoint that is one of this run, whose data have this fingerprint and whose tensors are those
    of the step. Older ones that a killed save has left, beyond `keep`, go."""
    for path, saved in found:
        check_data(saved.data_fingerprint, fingerprint)
        try:
            tensors = load_tensors(path)
            check_fit(saved, tensors, train_step.layout(), list(train_step.windows(saved.cursor.epoch)))
        except UserError as error:
            checkpoint.pass_over(path, error)
            continue
        print_line(f"going on from {path}")
        checkpoint.prune(path, keep)
        model = saved.config.model
        if saved.masks != MASKS and any([*model.unit_dropout, model.dropout_types, model.dropout_weights, saved.config.data.bptt_jitter]):
            print_line(f"{path} is of a version with other dropout masks and random segments: the run goes on with today's")
        return saved, tensors
    raise AssertionError("candidates raises where it has no more")


def check_fit(saved: Saved, tensors: dict[str, Tensor], expected: dict[str, Tensor], windows: list[Window]) -> None:
    """Refuse a checkpoint's values and tensors that are not of this run, which has `expected` tensors and in the checkpoint's epoch these
    windows, whatever its manifest says."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        raise UserError(f"{TENSORS} {'lacks' if name in expected else 'has a foreign'} {name}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise UserError(f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {expected[name].dtype} {list(expected[name].shape)}")
    cursor, begins = saved.cursor, [window.first for window in windows]
    if cursor.row not in begins:
        raise UserError(f"no step begins at row {cursor.row} of {windows[-1].end}")
    if cursor.step != cursor.epoch * len(begins) + begins.index(cursor.row):
        raise UserError(f"step {cursor.step} is not the one at row {cursor.row} of epoch {cursor.epoch}")


def check_config(saved: Config, config: Config) -> None:
    """Refuse to go on from a checkpoint of another configuration."""
    old, new = saved.to_flat_dict(), config.to_flat_dict()
    # The schedule plateau and the average asgd count validations.
    fixed = {"train.eval_every"} if config.optim.schedule == "plateau" or config.optim.average == "asgd" else set()
    for key in sorted(new):
        before, now = old[key], new[key]
        if before == now or key in FREE_KEYS - fixed or key.startswith("tracking."):
            continue
        may_grow = key in GROWING_KEYS and config.optim.schedule not in ENDING
        if not may_grow or (now is not None and (before is None or now <= before)):
            advice = "it may only grow" if may_grow else "set it back or start a new train.run_dir"
            raise UserError(f"cannot resume: {key} was {as_written(before)} and is {as_written(now)} now; {advice}")


def check_data(saved: str, fingerprint: str) -> None:
    """Refuse to go on with other data than the checkpoint's, by the fingerprints of vocabulary and tokens."""
    if saved != fingerprint:
        told = f"the data or its vocabulary differ from the checkpoint's (fingerprint was {saved[:12]}, is {fingerprint[:12]})"
        raise UserError(f"cannot resume: {told}; bring back the old files or start a new train.run_dir")
