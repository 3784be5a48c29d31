"""Where a run stands, and what it has added up on its way: all that a checkpoint keeps besides tensors and names."""

import math
from dataclasses import dataclass

from lstmlm.config import OptimConfig, TrainConfig
from lstmlm.data.table import Window


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

    def take(self, ppl: float, optim: OptimConfig) -> bool:
        """Take note of a validation at this step.

        Args:
            ppl: Its perplexity.
            optim: Says after how many without a new best the learning rate is cut.

        Returns:
            Whether it is the best so far.
        """
        self.validated, self.owes_validation = self.step, False
        best = math.isfinite(ppl) and (self.best is None or ppl < self.best)
        if best:
            self.best, self.best_step, self.stale = ppl, self.step, 0
        else:
            self.stale += 1
            if optim.schedule == "plateau" and self.stale % optim.plateau_patience == 0:
                self.rate_cuts += 1
        return best

    def ended(self, train: TrainConfig) -> bool:
        """Whether a run that stands here has nothing left to train: every step is done, or `train.patience` is at its end."""
        return (
            self.epoch >= train.epochs
            or (train.max_steps is not None and self.step >= train.max_steps)
            or (train.patience is not None and self.stale >= train.patience)
        )


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
