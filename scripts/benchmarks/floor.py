"""The floor of a step: its matrix products and LSTM layers alone, on warm buffers, each in the way that is fastest on this machine.

Each product of the head is tried with both operands and the result in either layout, of all rows at once and in pieces; each LSTM layer
by PyTorch's kernel and, in bf16 on a CPU, by ours. What a step takes above that is not the products' time.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from benchmarks.turns import Step
from torch import Tensor, nn

from lstmlm import Config
from lstmlm.data.corpus import Corpus
from lstmlm.model.loss import ALIGN_VOCABULARY
from lstmlm.model.lstm import LSTMFunction
from lstmlm.runtime import hardware

PIECES = 1, 2, 4  # of the rows
TRIES = 3  # of each way, of which the first is a warm-up and the least time counts
MOST_BYTES = 1 << 29  # of a piece's logits
Way = tuple[str, Callable[[], object]]  # to do a part of the step: its words, and the work


def floor_step(config: Config, corpus: Corpus, device: torch.device) -> Step:
    """A step of the fastest ways; its attribute `ways` has them in words."""
    hardware.keep_memory()
    hardware.set_float32_products(config.train.precision)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision, torch.float32)
    rows, columns = config.data.bptt, config.data.batch_size
    n, v = rows * columns, -(-len(corpus.vocabulary) // ALIGN_VOCABULARY) * ALIGN_VOCABULARY
    p = -(-(config.model.layer_sizes[-1] + 1) // 8) * 8
    parts: dict[str, Iterable[Way]] = {
        "logits": _products(n, p, v, n, dtype, device),
        "gradient of the head's input": _products(n, v, p, n, dtype, device),
        "gradient of the head's weight": _products(v, n, p, n, dtype, device),
    }
    # As the model's: no bf16 LSTM on a GPU.
    lstm_dtype = torch.float32 if config.train.precision == "bf16" and device.type == "cuda" else dtype
    sizes = itertools.pairwise([config.model.embedding_size, *config.model.layer_sizes])
    for i, (inputs, hidden) in enumerate(sizes):
        parts[f"LSTM layer {i + 1}"] = _layers(rows, columns, inputs, hidden, lstm_dtype, device)
    chosen = {part: _fastest(ways, device) for part, ways in parts.items()}

    def step(i: int) -> None:
        for _, work, _ in chosen.values():
            work()

    recorded = step if device.type == "cpu" else _recorded(step)
    recorded.ways = {part: f"{words}: {1e3 * seconds:.2f} ms" for part, (words, _, seconds) in chosen.items()}  # type: ignore[attr-defined]
    return recorded


def ways_of(step: Step, first: int, count: int) -> dict[str, str]:
    """What a process of the floor answers when it is asked for its ways."""
    return step.ways  # type: ignore[attr-defined]


def _fastest(ways: Iterable[Way], device: torch.device) -> tuple[str, Callable[[], object], float]:
    """The words, the work and the seconds of the fastest way; the memory of a slower one is let go before the next is made."""
    best: tuple[str, Callable[[], object], float] | None = None
    for words, work in ways:
        seconds = min([_seconds(work, device) for _ in range(TRIES)][1:])
        if best is None or seconds < best[2]:
            best = words, work, seconds
    assert best is not None
    return best


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _products(m: int, k: int, n: int, rows: int, dtype: torch.dtype, device: torch.device) -> Iterator[Way]:
    """(m, k) by (k, n), in pieces of the dimension that is `rows`."""

    def stored(first: int, second: int, turned: bool) -> Tensor:
        if turned:
            return torch.randn(second, first, device=device).to(dtype).T
        return torch.randn(first, second, device=device).to(dtype)

    for pieces, *turned in itertools.product(PIECES, (False, True), (False, True), (False, True)):
        a, b, c = (-(-size // pieces) if size == rows else size for size in (m, k, n))
        if max(a * b, b * c, a * c) * dtype.itemsize > MOST_BYTES:
            continue
        left, right, result = (stored(*s, t) for s, t in zip(((a, b), (b, c), (a, c)), turned, strict=True))
        names = [name for name, t in zip(("left", "right", "result"), turned, strict=True) if t]

        def work(left: Tensor = left, right: Tensor = right, result: Tensor = result, pieces: int = pieces) -> None:
            for _ in range(pieces):
                if result.is_contiguous():
                    torch.mm(left, right, out=result)
                else:
                    torch.mm(right.T, left.T, out=result.T)

        yield f"({m}, {k}) by ({k}, {n}), transposed: {', '.join(names) or 'none'}; pieces: {pieces}", work


def _layers(rows: int, columns: int, size: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Iterator[Way]:
    """A layer, forward and backward."""
    layer = nn.LSTM(size, hidden, device=device, dtype=dtype)
    inputs = torch.randn(rows, columns, size, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(rows, columns, hidden, dtype=dtype, device=device)
    yield "nn.LSTM", lambda: torch.autograd.grad(layer(inputs)[0], [inputs, *layer.parameters()], grad)
    if dtype == torch.bfloat16 and device.type == "cpu":
        state = torch.zeros(2, columns, hidden)
        weights = list(layer.parameters())[:2]
        bias = torch.zeros(4 * hidden, requires_grad=True)

        def work() -> None:
            outputs, _, _ = LSTMFunction.apply(inputs, *state, *weights, bias, dtype)
            torch.autograd.grad(outputs, [inputs, *weights, bias], grad)

        yield "LSTMFunction", work


def _recorded(step: Step) -> Step:
    """The same on a GPU without the host's share: one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            step(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step(0)
    return lambda i, kept=step: graph.replay()  # type: ignore[misc]  # kept: the memory it reads and writes
