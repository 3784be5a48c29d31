"""Exact perplexity of a stream: every target counts once, and the nll of all ranks is summed before exp is taken."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lstmlm.data.table import IGNORE, Table
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.runtime.distributed import rounds, sum_over_ranks
from lstmlm.runtime.hardware import ieee_products

SEGMENT_TOKENS = 1024  # targets that a rank scores at a time; the result does not depend on it
STRETCHES = 16  # stretches of a text that are scored side by side; the result does not depend on it


@dataclass(frozen=True)
class Evaluation:
    """The score of a stream.

    Attributes:
        tokens: n, length of the stream.
        targets: N = n - 1, each counted once.
        nll: Sum of the negative log likelihood of all targets, in nats.
        columns: Columns that the stream was cut into; all but the first begin without context. At 1, the reference, none does.
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
        """exp(loss)."""
        return exponential(self.loss)


def exponential(loss: float) -> float:
    """exp(loss); infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


def word_ppl(result: Evaluation, words: int) -> float:
    """Perplexity per word, exp(nll / words scored), which compares models that cut a text into different tokens.

    A token that is not scored (the first one of a text without resets) takes its word out of the count, so for a model whose tokens
    are the words this is `ppl`.

    Args:
        result: Of a text.
        words: Of that text: what stands between white space, and the line ends.
    """
    scored = words - (result.tokens - result.targets)
    return exponential(result.nll / scored) if scored else math.inf


def bits_per_character(result: Evaluation, characters: int) -> float:
    """Nll / (ln 2 x characters).

    Args:
        result: Of a text.
        characters: Of that text, spaces and line ends counted.
    """
    return result.nll / math.log(2) / characters


# A way to score a stream, which owns what it carries from one segment to the next. It is called with inputs, int64 (T, B), the rows that
# follow those of the call before, and targets, int64 (T, B), -100 where there is none. It gives the nll of every target in nats, float32
# (T, B), 0 where there is none.
Scorer = Callable[[Tensor, Tensor], Tensor]


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


@torch.no_grad()  # not inference_mode, within which dynamic evaluation could take no gradient
@ieee_products()
def evaluate_stream(
    model: LSTMLanguageModel,
    stream: Tensor,
    columns: int = 1,
    accelerator: Accelerator | None = None,
    bptt: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Static perplexity of a model on a stream, in float32 whatever the training's precision.

    Args:
        model: The bare model, not wrapped.
        stream: int32 (n,).
        columns: Columns of all ranks together; a rank that has none adds zero.
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
    local = table.local_columns
    segments = _score_table(table, StaticScorer(model, local), bptt, interrupted) if local else iter(())
    for segment_nll, _ in rounds(accelerator, segments):
        if segment_nll is not None:
            nll += segment_nll.double().sum()
    if accelerator:
        nll = sum_over_ranks(accelerator, nll)
    return Evaluation(len(stream), table.num_targets, nll.item(), columns)


@torch.no_grad()
@ieee_products()
def evaluate_whole(
    model: LSTMLanguageModel,
    streams: Sequence[Tensor],
    accelerator: Accelerator,
    scored: Callable[[int], object] = lambda targets: None,
) -> list[Evaluation]:
    """Static perplexity of a model on several streams, each at one column by one rank, so each to the bit what a single rank gives.

    Args:
        model: The bare model, not wrapped.
        streams: Each int32 (n,); they are dealt out to the ranks.
        accelerator: Every rank calls this.
        scored: Called with about the number of targets that all ranks scored since the last call.
    """
    own = range(accelerator.process_index, len(streams), accelerator.num_processes)
    device = model.embedding.weight.device
    nll = torch.zeros(len(streams), dtype=torch.float64)
    segments = (
        (i, segment_nll)
        for i in own
        for segment_nll in _score_table(Table(streams[i], 1, device=device), StaticScorer(model, 1), None)
    )
    for segment, working in rounds(accelerator, segments):
        if segment is not None:
            i, segment_nll = segment
            nll[i] += segment_nll.double().sum()
        scored(working * SEGMENT_TOKENS)
    sums = sum_over_ranks(accelerator, nll).tolist()
    return [Evaluation(len(stream), len(stream) - 1, nll, 1) for stream, nll in zip(streams, sums, strict=True)]


@torch.no_grad()
@ieee_products()
def score_stream(
    scorer: Scorer, stream: Tensor, columns: int, device: torch.device | str = "cpu", bptt: int | None = None
) -> Tensor:
    """Nll of every target of a stream by one process, float32 (N,), in the order of the stream.

    Args:
        scorer: Fresh, of `columns` columns.
        stream: int32 (n,); N = n - 1.
        columns: B, from 1 to N.
        device: The scorer's.
        bptt: Rows scored at a time; None = about SEGMENT_TOKENS targets.
    """
    table = Table(stream, columns, device=device)
    # Filled row by row: small tensors that stay among large ones would split the heap.
    rows, row = torch.empty(table.rows, columns), 0
    for nll in _score_table(table, scorer, bptt):
        rows[row : row + len(nll)] = nll
        row += len(nll)
    bounds = [b * table.num_targets // columns for b in range(columns + 1)]
    return torch.cat([rows[: end - start, b] for b, (start, end) in enumerate(itertools.pairwise(bounds))])


@torch.no_grad()
@ieee_products()
def score_stretches(
    make_scorer: Callable[[int], Scorer],
    ids: Tensor,
    starts: list[int],
    before: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Nll of every token of a text that is read in stretches, none of which knows of another, float32 (n,), in the text's order.

    Stretches of like lengths run side by side, filled up with places that have no target.

    Args:
        make_scorer: Makes a fresh scorer of so many columns.
        ids: Of the text, int32 (n,).
        starts: Where each stretch begins, in rising order; the first begins at 0.
        before: Id of the token that is read before the first token of every stretch.
        device: The scorers'.
    """
    stretches = sorted(itertools.pairwise([*starts, len(ids)]), key=lambda stretch: stretch[0] - stretch[1])
    nll = torch.empty(len(ids))
    for first in range(0, len(stretches), STRETCHES):
        batch = stretches[first : first + STRETCHES]
        targets = pad_sequence([ids[start:end] for start, end in batch], padding_value=IGNORE)  # (R, B)
        inputs = torch.cat([targets.new_full((1, len(batch)), before), targets[:-1].clamp(min=0)])
        scorer, rows = make_scorer(len(batch)), -(-SEGMENT_TOKENS // len(batch))
        segments = zip(inputs.split(rows), targets.split(rows), strict=True)
        scores, row = torch.empty(len(targets), len(batch)), 0  # (R, B)
        for i, t in segments:
            scores[row : row + len(i)] = scorer(i.to(device).long(), t.to(device).long())
            row += len(i)
        for column, (start, end) in enumerate(batch):
            nll[start:end] = scores[: end - start, column]
    return nll


def _score_table(
    table: Table, scorer: Scorer, bptt: int | None, interrupted: Callable[[], bool] = lambda: False
) -> Iterator[Tensor]:
    """Nll of one segment after the other, each float32 (T, B_r) on the CPU."""
    for window in table.windows(bptt or -(-SEGMENT_TOKENS // table.local_columns)):
        if interrupted():
            raise InterruptedError
        yield scorer(*table.segment(*window.segments[0])).cpu()
