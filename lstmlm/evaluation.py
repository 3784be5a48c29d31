"""Exact perplexity: every target counts once, sums over ranks come before the one exponential."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from lstmlm.config import DataConfig, UsageError
from lstmlm.corpus import SPLITS, load_split
from lstmlm.distributed import default_threads, ieee_products, keep_memory, sum_over_ranks
from lstmlm.model import LSTMLanguageModel, load_pretrained, pretrained_config
from lstmlm.stream import Table

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


@torch.inference_mode()
@ieee_products()
def evaluate_stream(
    model: LSTMLanguageModel,
    stream: torch.Tensor,
    columns: int = 1,
    accelerator: Accelerator | None = None,
    bptt: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Perplexity of a model on a stream, in float32 whatever the training's precision.

    Args:
        model: The bare model, not wrapped.
        stream: int32 (n,).
        columns: Columns over all ranks; a rank without any adds zeros.
        accelerator: Where several ranks share the work; every rank calls this then.
        bptt: Rows scored at a time; None = about SEGMENT_TOKENS targets. The result does not depend on it.
        interrupted: Asked before each segment.

    Raises:
        InterruptedError: `interrupted` said so.
    """
    columns = min(columns, len(stream) - 1)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    table = Table(stream, columns, rank, world_size, model.embedding.weight.device)
    nll = torch.zeros((), dtype=torch.float64)
    if table.local_columns:
        state = model.initial_state(table.local_columns)
        for window in table.windows(bptt or -(-SEGMENT_TOKENS // table.local_columns)):
            if interrupted():
                raise InterruptedError
            inputs, targets = table.segment(*window.segments[0])
            segment_nll, state = model.score(inputs, state, targets)
            nll += segment_nll.cpu().double().sum()
    if accelerator:
        nll = sum_over_ranks(accelerator, nll)
    return Evaluation(len(stream), table.num_targets, nll.item(), columns)


def evaluate(
    model: str | Path, split: str = "test", columns: int = 1, dataset: str | None = None, cache_dir: str | None = None
) -> Evaluation:
    """Perplexity of a saved model on a split of the data it was trained on.

    Args:
        model: Folder that training exported (`runs/.../model`).
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
    data = DataConfig(**pretrained_config(model)["data"])
    data = dataclasses.replace(data, dataset=dataset or data.dataset, cache_dir=cache_dir or data.cache_dir)
    torch.set_num_threads(default_threads())
    keep_memory()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    language_model, vocabulary = load_pretrained(model, device or "cpu")
    return evaluate_stream(language_model, load_split(data, split, vocabulary), columns)


@torch.inference_mode()
def score_text(text: str, model: str | Path) -> list[tuple[str, float]]:
    """Each token of a text with its negative log likelihood in nats, the state carried from the first to the last.

    Args:
        text: One line or several; scored as if it stood at the start of a line, `<eos>` scored at every line's end.
        model: Folder that training exported.

    Raises:
        UserError: The model cannot be read, or the text is empty.
    """
    if not text:
        raise UsageError("there is no text to score")
    language_model, vocabulary = load_pretrained(model)
    ids = [vocabulary.eos] + [i for line in text.removesuffix("\n").split("\n") for i in vocabulary.encode(line)]
    tokens = torch.tensor(ids)[:, None]  # (T + 1, 1)
    nll, _ = language_model.score(tokens[:-1], language_model.initial_state(1), tokens[1:])
    return [(vocabulary.tokens[i], value) for i, value in zip(ids[1:], nll[:, 0].tolist(), strict=True)]
