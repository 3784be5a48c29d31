"""Exact perplexity of a stream: every target counts once, and the nll of all ranks is summed before exp is taken."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lstmlm.data.table import IGNORE, Table
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.runtime.hardware import ieee_products

if TYPE_CHECKING:  # scoring by one process does without, and starts sooner
    from accelerate import Accelerator

SEGMENT_TOKENS = 1 << 12  # targets that a rank scores at a time; no result depends on this number or on PIECE_TOKENS
PIECE_TOKENS = 1 << 16  # tokens of a piece of a text, whose stretches run side by side
Scored = Callable[[int], object]  # called after each segment with the number of its targets; by `evaluate_stream` with about that


@dataclass(frozen=True)
class Evaluation:
    """The score of a stream."""

    tokens: int  # n, length of the stream
    targets: int  # N = n - 1, each counted once; with resets N = n
    nll: float  # sum of the negative log likelihood of all targets, in nats
    columns: int  # that the stream was cut into. Each but the first begins without context, which raises the loss; 1 cuts nothing
    words: int = 0  # of the text: what stands between white space, and the line ends; 0 where nobody told
    characters: int = 0  # of the text, spaces and line ends counted; 0 likewise

    @property
    def loss(self) -> float:
        """Nll per target."""
        return self.nll / self.targets

    @property
    def ppl(self) -> float:
        """exp(loss)."""
        return exponential(self.loss)

    @property
    def word_ppl(self) -> float:
        """Perplexity per word, exp(nll / words scored), which compares models that cut a text into different tokens.

        A token that is not scored (the first one of a text without resets) takes its word out of the count, so for a model whose
        tokens are the words this is `ppl`.
        """
        scored = self.words - (self.tokens - self.targets)
        return exponential(self.nll / scored) if scored > 0 else math.inf

    @property
    def bpc(self) -> float:
        """Bits per character of the text."""
        return self.nll / math.log(2) / self.characters if self.characters else math.inf


def exponential(loss: float) -> float:
    """exp(loss); infinite from a loss of 700 on (a float ends near 709), and of NaN."""
    return math.exp(loss) if loss < 700 else math.inf


# A way to score a stream; it owns what it carries from one segment to the next. It takes inputs, int64 (T, B), the rows that follow those
# of the call before, or fewer columns where the last ones have ended; and targets, int64 (T, B), -100 where there is none. It gives what is
# told of every target, float32 (..., T, B): its nll in nats, 0 where there is none; and the last layer's outputs, (T, B, H).
Scorer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class StaticScorer:
    """The bare model, not wrapped, as it is; the hidden state, of B columns, is carried."""

    def __init__(self, model: LSTMLanguageModel, columns: int) -> None:
        self.model = model
        self._state = model.initial_state(columns)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll, outputs, self._state = self.model.score(inputs, self._state.select(slice(inputs.shape[1])), targets)
        return nll, outputs


@torch.no_grad()  # not inference_mode, within which dynamic evaluation could take no gradient
@ieee_products()
def evaluate_stream(
    model: LSTMLanguageModel,
    stream: Tensor,
    columns: int = 1,
    accelerator: "Accelerator | None" = None,
    scored: Scored = lambda targets: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Static perplexity of a model on a stream, in float32 whatever the training's precision.

    Args:
        model: Not DDP's wrapper. `accelerator.prepare` has put autocast into its `forward`, in place; `score`, which is called here, is
            without it.
        stream: int32 (n,).
        columns: Columns of all ranks together; a rank that has none adds zero.
        accelerator: Where several ranks share the work; every rank calls this then.
        scored: Called with about the number of targets that all ranks scored since the last call.
        interrupted: Asked before each segment.

    Raises:
        InterruptedError: `interrupted` said so, on some rank.
    """
    from lstmlm.runtime.distributed import rounds, sum_over_ranks

    columns = min(columns, len(stream) - 1)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    table = Table(stream, columns, rank, world_size, model.embedding.weight.device)
    local, nll = table.local_columns, torch.zeros((), dtype=torch.float64)
    scorer = StaticScorer(model, local)
    windows = table.windows(-(-SEGMENT_TOKENS // local)) if local else ()
    for window, working in rounds(accelerator, windows, interrupted):
        if window is not None:
            nll += scorer(*table.segment(*window.segments[0]))[0].cpu().double().sum()
        scored(working * SEGMENT_TOKENS)
    return Evaluation(len(stream), table.num_targets, sum_over_ranks(accelerator, nll).item(), columns)


@torch.no_grad()
@ieee_products()
def score_stream(
    scorer: Scorer, stream: Tensor, columns: int, device: torch.device, bptt: int | None = None, scored: Scored = lambda targets: None
) -> Tensor:
    """Nll of every target of a stream by one process, float32 (N,), in the order of the stream.

    Args:
        scorer: Fresh, of `columns` columns, on `device`.
        stream: int32 (n,); N = n - 1.
        columns: B, from 1 to N.
        bptt: Rows scored at a time; None = about SEGMENT_TOKENS targets.
    """
    table = Table(stream, columns, device=device)
    nll = torch.empty(table.rows, columns)  # filled row by row: small tensors that stay among large ones would split the heap
    for window in table.windows(bptt or -(-SEGMENT_TOKENS // columns)):
        ((first, end),) = window.segments
        nll[first:end] = scorer(*table.segment(first, end))[0]
        scored(window.num_targets)
    present = torch.arange(table.rows)[:, None] < table.lengths.cpu()  # (rows, B)
    return nll.T[present.T]  # column after column


class Stretches:
    """Scores of a text that is read in stretches, none of which knows of another.

    The text comes piece by piece. Its stretches run side by side, the longest first and at most SEGMENT_TOKENS at once, and a segment
    takes as many rows of those that still run as make SEGMENT_TOKENS: so short ones cost no more than long ones, and hardly any padding
    is computed. The last stretch of a piece has a scorer of its own, with which it goes on in the next.

    Args:
        make_scorer: Makes a fresh scorer of so many columns.
        before: Id of the token that is read before the first token of every stretch.
    """

    def __init__(
        self, make_scorer: Callable[[int], Scorer], before: int, device: torch.device, scored: Scored = lambda targets: None
    ) -> None:
        self._make_scorer, self._before, self._device, self._scored = make_scorer, before, device, scored
        self._previous, self._open = before, make_scorer(1)

    @torch.no_grad()
    @ieee_products()
    def __call__(self, ids: Tensor, starts: list[int]) -> Tensor:
        """What the scorer gives for every token of a piece, (..., n), on the CPU.

        Args:
            ids: Of the piece, integers (n,), n >= 1.
            starts: Where a stretch begins in it, in rising order.
        """
        targets = ids.long()
        inputs = torch.cat([targets.new_tensor([self._previous]), targets[:-1]])
        inputs[starts] = self._before
        self._previous = int(targets[-1])
        *whole, last = itertools.pairwise(sorted({0, *starts, len(ids)}))
        runs = []
        if whole and 0 not in starts:
            runs.append((self._open, [whole.pop(0)]))
        whole.sort(key=lambda stretch: stretch[0] - stretch[1])
        for group in (whole[i : i + SEGMENT_TOKENS] for i in range(0, len(whole), SEGMENT_TOKENS)):
            runs.append((self._make_scorer(len(group)), group))
        if last[0] in starts:
            self._open = self._make_scorer(1)
        runs.append((self._open, [last]))
        scores = torch.empty(0)
        for scorer, stretches in runs:
            for places, values in self._run(scorer, stretches, inputs, targets):
                if not len(scores):
                    scores = torch.empty(*values.shape[:-1], len(ids))
                scores[..., places] = values
        return scores

    def all(self, ids: Tensor, starts: list[int]) -> Tensor:
        """The same for a whole text, in pieces of PIECE_TOKENS."""
        parts = []
        for first in range(0, len(ids), PIECE_TOKENS):
            begin, end = (bisect.bisect_left(starts, place) for place in (first, first + PIECE_TOKENS))
            parts.append(self(ids[first : first + PIECE_TOKENS], [start - first for start in starts[begin:end]]))
        return torch.cat(parts, -1)

    def _run(self, scorer: Scorer, stretches: list[tuple[int, int]], inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Places (N,) and their scores (..., N) of one segment after the other; the stretches come longest first."""
        begins, ends = torch.tensor(stretches).T  # (B,)
        running, row = len(stretches), 0
        lengths = [end - begin for begin, end in stretches]
        while row < lengths[0]:
            while lengths[running - 1] <= row:
                running -= 1
            end = min(row + SEGMENT_TOKENS // running, lengths[0])
            places = begins[:running] + torch.arange(row, end)[:, None]  # (T, B)
            present = places < ends[:running]
            places.clamp_(max=len(inputs) - 1)
            segment = inputs[places].to(self._device), targets[places].where(present, IGNORE).to(self._device)
            yield places[present], scorer(*segment)[0].cpu()[..., present]
            self._scored(int(present.sum()))
            row = end
