"""Where a run stands, its sums since the last log line, and where its time went; a checkpoint keeps all three."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lstmlm.config import OptimConfig, TrainConfig
from lstmlm.data.table import Window
from lstmlm.evaluation.perplexity import exponential
from lstmlm.training.step import StepResult


@dataclass
class Cursor:
    """Where the run stands: what has been done, and so what comes next."""

    epoch: int = 0  # passes completed
    row: int = 0  # the next one of the table
    step: int = 0  # optimizer steps done
    segment: int = 0  # segments done, over the whole run
    tokens: int = 0  # targets predicted so far, over all ranks
    best: float | None = None  # lowest validation perplexity so far
    best_step: int = 0  # of that validation; 0 where a version that did not keep it wrote the checkpoint
    stale: int = 0  # validations since the best one, or since the average began; those within optim.warmup_steps left out
    rate_cuts: int = 0  # how often the schedule `plateau` has cut the learning rate
    validated: int = 0  # step of the last validation
    owes_validation: bool = False  # whether one comes before the next step: a stop cut it short, or the run begins with a saved model

    def advance(self, window: Window) -> None:
        """One step further."""
        self.row = window.end
        self.step += 1
        self.segment += len(window.segments)
        self.tokens += window.num_targets

    @property
    def position(self) -> dict[str, int]:
        """What every line of metrics begins with; the epoch is the one that the last step belongs to, from 1."""
        return {"step": self.step, "epoch": self.epoch + (self.row > 0), "tokens": self.tokens}

    def note_validation(self, ppl: float, optim: OptimConfig) -> bool:
        """Take note of a validation's perplexity at this step, and tell whether it is the best so far.

        The schedule `plateau` cuts the learning rate after every `plateau_patience` of them without a new best.
        """
        self.validated, self.owes_validation = self.step, False
        is_best = math.isfinite(ppl) and (self.best is None or ppl < self.best)
        if is_best:
            self.best, self.best_step, self.stale = ppl, self.step, 0
        elif self.step >= optim.warmup_steps:  # a rate that is still low is no sign that it is too high
            self.stale += 1
            if optim.schedule == "plateau" and self.stale % optim.plateau_patience == 0:
                self.rate_cuts += 1
        return is_best

    def ended(self, train: TrainConfig) -> bool:
        """Whether a run that stands here has nothing left to train: every step, or `train.patience` validations without a best one."""
        all_steps = self.epoch >= train.epochs or (train.max_steps is not None and self.step >= train.max_steps)
        return all_steps or (train.patience is not None and self.stale >= train.patience)


@dataclass
class Interval:
    """Sums since the last line of training metrics."""

    nll: float = 0.0
    targets: int = 0
    grad_norm: float = 0.0
    updates: int = 0
    seconds: float = 0.0
    learning_rate: float = (
        0.0  # of the last step, without the factor of `data.bptt_jitter`; 0 where a version that did not keep it wrote the checkpoint
    )

    def add(self, results: list[StepResult], learning_rate: float, seconds: float) -> None:
        """Add steps, the learning rate of the last of them, and the time that they took."""
        for result in results:
            self.nll += result.nll
            self.targets += result.num_targets
            if result.grad_norm is not None:
                self.grad_norm += result.grad_norm
                self.updates += 1
        self.learning_rate = learning_rate
        self.seconds += seconds

    def metrics(self) -> dict[str, float]:
        """The line of training metrics, of at least one step."""
        loss = self.nll / self.targets
        return {
            "train/loss": loss,
            "train/ppl": exponential(loss),
            "train/grad_norm": self.grad_norm / max(1, self.updates),
            "train/lr": self.learning_rate,
            "train/tokens_per_second": self.targets / self.seconds,
        }


@dataclass
class Seconds:
    """Where the time of a run went, summed over its starts. Work that a kill destroyed is not counted."""

    total: float = 0.0  # wall time since the run directory was opened
    training: float = 0.0  # in steps
    evaluation: float = 0.0  # in validation and final scoring
    saving: float = 0.0  # of checkpoints and models
    tracking: float = 0.0  # waiting for the trackers

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the time of a block to that of an activity, one of the fields."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, activity, getattr(self, activity) + time.perf_counter() - begin)
