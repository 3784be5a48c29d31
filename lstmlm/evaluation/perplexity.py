"""Exact perplexity: every target counts once, sums over ranks come before the one exponential."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from lstmlm.config import DataConfig
from lstmlm.console import UsageError
from lstmlm.data.corpus import load_split
from lstmlm.data.sources import SPLITS
from lstmlm.data.table import Table
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import default_device, find_model, load_pretrained, read_config
from lstmlm.runtime.distributed import sum_over_ranks
from lstmlm.runtime.hardware import ieee_products

SEGMENT_TOKENS = 1024  # targets scored at a time, over a rank's columns; the result does not depend on it


@dataclass(frozen=True)
class Evaluation:
    """The score of a stream.

    Attributes:
        tokens: n, length of the stream.
        targets: N = n - 1, each counted once.
        nll: Sum of the negative log likelihood of all targets, in nats.
        columns: Columns the stream was cut into; all but the first begin without context. 1 is the reference.
    """

    tokens: int
    targets: int
    nll: float
    columns: int

    @property
    def loss(self) -> float:
        """Nll per target."""
        return self.nll / self.targets

    @property
    def ppl(self) -> float:
        """exp(loss); infinite where that is beyond a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Scorer(Protocol):
    """A way to score a stream (a protocol): it owns what it carries from one segment to the next."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Nll of every target in nats.

        Args:
            inputs: int64 (T, B), the rows after those of the call before.
            targets: int64 (T, B), -100 where there is none.

        Returns:
            float32 (T, B), 0 where the target is -100.
        """


class StaticScorer:
    """The model as it is; the hidden state is carried.

    Args:
        model: The bare model, not wrapped.
        columns: B.
    """

    def __init__(self, model: LSTMLanguageModel, columns: int) -> None:
        self._model = model
        self._state = model.initial_state(columns)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As `Scorer`."""
        nll, self._state = self._model.score(inputs, self._state, targets)
        return nll


@torch.inference_mode()
@ieee_products()
def evaluate_stream(
    model: LSTMLanguageModel,
    stream: Tensor,
    columns: int = 1,
    accelerator: Accelerator | None = None,
    bptt: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    scorer: Callable[[LSTMLanguageModel, int], Scorer] = StaticScorer,
) -> Evaluation:
    """Perplexity of a model on a stream, in float32 whatever the training's precision.

    Args:
        model: The bare model, not wrapped.
        stream: int32 (n,).
        columns: Columns over all ranks; a rank without any adds zeros.
        accelerator: Where several ranks share the work; every rank calls this then.
        bptt: Rows scored at a time; None = about SEGMENT_TOKENS targets. The result does not depend on it.
        interrupted: Asked before each segment.
        scorer: Makes the scorer of this rank's columns out of the model and their number.

    Raises:
        InterruptedError: `interrupted` said so.
    """
    columns = min(columns, len(stream) - 1)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    table = Table(stream, columns, rank, world_size, model.embedding.weight.device)
    nll = torch.zeros((), dtype=torch.float64)
    if table.local_columns:
        score = scorer(model, table.local_columns)
        for window in table.windows(bptt or -(-SEGMENT_TOKENS // table.local_columns)):
            if interrupted():
                raise InterruptedError
            nll += score(*table.segment(*window.segments[0])).cpu().double().sum()
    if accelerator:
        nll = sum_over_ranks(accelerator, nll)
    return Evaluation(len(stream), table.num_targets, nll.item(), columns)


def evaluate(
    model: str | Path | None = None,
    split: str = "test",
    columns: int = 1,
    dataset: str | None = None,
    cache_dir: str | None = None,
) -> Evaluation:
    """Perplexity of a saved model on a split of the data it was trained on.

    Args:
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        split: `train`, `validation` or `test`.
        columns: At least 1; more are faster and score somewhat worse. 1 is the reference.
        dataset: Another place of the data (as `data.dataset`); None = where training found it.
        cache_dir: As `data.cache_dir`; None = its default.

    Raises:
        UserError: The model or the data cannot be had.
    """
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}: name one of {', '.join(SPLITS)}")
    if columns < 1:
        raise UsageError(f"columns must be at least 1, not {columns}")
    folder = find_model(model)
    data = DataConfig(**read_config(folder)["data"])
    data = dataclasses.replace(data, dataset=dataset or data.dataset, cache_dir=cache_dir or data.cache_dir)
    language_model, vocabulary = load_pretrained(folder, default_device())
    return evaluate_stream(language_model, load_split(data, split, vocabulary), columns)
