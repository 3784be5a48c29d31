"""Exact linear + cross-entropy that never keeps the logits (T*B, V), the largest tensor of training by far.

The rows are taken in chunks, and a chunk's gradients are computed while its logits are at hand (the idea of Cut Your Losses, Wijmans
et al., 2024, and of Liger's kernel). The bias is one more column of the weight, against a column of ones in the input, and its gradient
is one more column of the weight's gradient. The weight is filled up to a round number of rows, so that each row of the logits begins
aligned; the added types have no probability. An operand that lies transposed in memory (`_layout`) keeps its shape: its strides differ.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlm.data.table import IGNORE

# Logits of one chunk: at V = 33,278 about 1,000 rows in bf16, 500 in float32. Each chunk's products prepare the weight anew, so on a
# CPU half of all rows are one chunk, up to LARGE_CHUNK times these bytes.
CHUNK_BYTES, LARGE_CHUNK = 1 << 26, 3
SCORES_CHUNK_BYTES = 1 << 23  # of one chunk whose logits are read several times: they stay in a processor's cache
FEW_ROWS = 64  # up to here a chunk's preparation, two copies of the weight, would take longer than it saves
ALIGN_VOCABULARY = 64  # rows of the decoder are filled up to a multiple of this
TRANSPOSED_AT_ONCE = 4096  # rows of the decoder that are transposed at a time, so that they stay in a processor's cache
# .buffer is the logits' memory on a CPU. It is the largest block by far: allocated anew each time, it would leave holes in the heap.
_kept = threading.local()


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Summed negative log likelihood of `targets` under softmax(hidden @ weight.T + bias), in nats.

    The products run in the autocast precision where autocast is on, else in that of `hidden`; the sums over tokens are float32.

    Args:
        hidden: (N, H).
        weight: (V, H).
        bias: (V,) or None.
        targets: int64 (N,) in [0, V), or -100 for a row that does not count.

    Returns:
        A float32 scalar (float64 for float64 inputs).
    """
    return _sum_and_tokens(hidden, weight, bias, targets)[0]


def summed_and_token_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and beside it the nll of each target, (N,), 0 where the target is -100; only the sum has a gradient."""
    if len(hidden) > FEW_ROWS:
        return _sum_and_tokens(hidden, weight, bias, targets)
    logits = F.linear(hidden, weight, bias)
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    return nll.sum(), nll.detach()


def _sum_and_tokens(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    _check_targets(targets, len(weight))
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype, torch.is_grad_enabled())


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Nll of each target in nats, (N,), without gradients; 0 where the target is -100. Arguments are those of `linear_cross_entropy`."""
    return _sum_and_tokens(hidden, weight, bias, targets)[1]


class TokenScores(NamedTuple):
    """What a distribution over the vocabulary says of itself and of the token that came; float32 (N,), in nats."""

    nll: Tensor  # negative log likelihood of the token
    entropy: Tensor  # of the distribution
    rank: Tensor  # 1 + the types with a higher logit than the token's, int64 (N,)
    members_nll: Tensor  # negative log of the probability that the token is one of some types


@torch.no_grad()
def token_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, members: Tensor | None = None) -> TokenScores:
    """Nll and rank of each target, the entropy of the distribution it was drawn from, and the share of some types in that.

    Args:
        hidden, weight, bias, targets: As for `linear_cross_entropy`; N >= 1, and every row counts.
        members: Ids of the types; None = all, whose share is 1.
    """
    _check_targets(targets, len(weight))
    inputs, decoder = _operands(hidden, weight, bias, hidden.dtype, _layout(hidden, hidden.dtype))
    belongs = None
    if members is not None:
        belongs = decoder.new_zeros(len(decoder))
        belongs[members] = 1
    size = SCORES_CHUNK_BYTES if hidden.device.type == "cpu" else None  # a GPU has no such cache, and each chunk reads the decoder anew
    chunks = zip(*(_chunks(part, decoder, size) for part in (inputs, targets[:, None])), strict=True)
    scores = zip(*(_describe(rows, decoder, target, belongs) for rows, target in chunks), strict=True)
    return TokenScores(*map(torch.cat, scores))


def _describe(rows: Tensor, decoder: Tensor, target: Tensor, belongs: Tensor | None) -> TokenScores:
    logits = _logits(rows, decoder)  # (n, U)
    target_logit, largest = _target_and_largest(logits, target)
    work = torch.gt(logits, target_logit, out=torch.empty_like(logits))  # floats: to sum booleans takes much longer
    rank = work.sum(-1).long() + 1  # exact up to 2^24 types
    logits -= largest  # at most 0 from here on, so that nothing large cancels
    exponentials = torch.exp(logits, out=work)
    total = exponentials.sum(-1)  # p = exp(logit) / total, and ln p = logit - ln total
    of_members = total if belongs is None else exponentials @ belongs
    entropy = total.log() - exponentials.mul_(logits).sum(-1) / total
    return TokenScores(total.log() + (largest - target_logit)[:, 0], entropy, rank, total.log() - of_members.log())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, grad_enabled: bool
    ) -> tuple[Tensor, Tensor]:
        layout = _layout(hidden, dtype)
        inputs, decoder = _operands(hidden, weight, bias, dtype, layout)
        counted = (targets != IGNORE)[:, None]  # (N, 1)
        scored = targets[:, None].where(counted, 0)  # (N, 1)
        with_grad = grad_enabled and any(ctx.needs_input_grad)  # the caller tells, as within a Function gradients are always off
        sums = torch.promote_types(dtype, torch.float32)
        nll = torch.zeros((), dtype=sums, device=hidden.device)
        token_nll, hidden_grads, weight_grad = [], [], None
        for rows, target, count in zip(_chunks(inputs, decoder), _chunks(scored, decoder), _chunks(counted, decoder), strict=True):
            probabilities, log_probs = _softmax(rows, decoder, target)
            token_nll.append(-log_probs * count)
            nll += token_nll[-1].sum()
            if not with_grad:
                continue
            logits_grad = probabilities  # d nll / d logits = softmax - onehot
            logits_grad[torch.arange(len(rows), device=rows.device), target[:, 0]] -= 1
            # Rows that do not count are zeroed in the small factors, not in the large one.
            hidden_grads.append(_mm(logits_grad, decoder, layout.weight) * count)
            counting_rows = rows * count
            if weight_grad is None:
                weight_grad = _mm(logits_grad.T, counting_rows, layout.gradient)
            elif dtype == sums:
                weight_grad.addmm_(logits_grad.T, counting_rows)
            else:
                weight_grad = weight_grad.to(sums).add_(_mm(logits_grad.T, counting_rows, layout.gradient))
            del probabilities, logits_grad  # the next chunk's take their place
        if weight_grad is not None:
            ctx.save_for_backward(torch.cat(hidden_grads), weight_grad)
            ctx.shape, ctx.has_bias, ctx.dtypes = weight.shape, bias is not None, (hidden.dtype, weight.dtype)
        of_tokens = torch.cat(token_nll)[:, 0]
        ctx.mark_non_differentiable(of_tokens)
        return nll, of_tokens

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        scale, _ = grad_outputs
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        vocab_size, size = ctx.shape
        of_weight = weight_grad[:vocab_size, :size]
        if of_weight.dtype == weight_dtype:
            of_weight = of_weight * scale
        else:  # in place, as a second block of this size costs more than a second pass
            of_weight = of_weight.new_empty(ctx.shape, dtype=weight_dtype).copy_(of_weight).mul_(scale)
        of_bias = weight_grad[:vocab_size, size].to(weight_dtype) * scale if ctx.has_bias else None
        return hidden_grad[:, :size].to(hidden_dtype) * scale, of_weight, of_bias, None, None, None


class _Layout(NamedTuple):
    """How the large operands of the products lie in memory."""

    weight: bool = False  # the decoder's operand lies transposed, as (P, U)
    gradient: bool = False  # so does its gradient
    align: int = 8  # columns of the decoder's operand are filled up to a multiple of this


def _layout(hidden: Tensor, dtype: torch.dtype) -> _Layout:
    """The layout that the processor's products like, by a rule (docs/performance.md has the measurements).

    A probe of the time would choose by chance, and a resumed run would round otherwise than the one that was stopped.
    """
    rows, size = hidden.shape
    # Elsewhere, and with few rows, copies into and out of a layout take longer than it saves.
    if hidden.device.type != "cpu" or dtype != torch.bfloat16 or rows < 500 or not has_matrix_units():
        return _Layout()
    return _Layout(weight=True, gradient=True, align=32) if rows >= 1000 and size <= 512 else _Layout(gradient=True)


def _mm(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """left @ right, whose result lies transposed in memory where that is asked for."""
    return (right.T @ left.T).T if transposed else left @ right


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in tiles (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def refuse_second_derivatives() -> None:
    """Called by a backward that forms its gradients without a graph of their own; a RuntimeError where one is asked for."""
    # `once_differentiable` would say nothing where the incoming gradient is a constant, as that of a loss is.
    if torch.is_grad_enabled():
        raise RuntimeError("first derivatives only: for create_graph=True use torch's own cross_entropy, and no bf16 on a CPU")


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    """Refuse a target that is no type, as PyTorch does; of a GPU's targets it would have to wait for the GPU to know."""
    if targets.device.type == "cpu":
        outside = (targets != IGNORE) & ((targets < 0) | (targets >= vocab_size))
        if outside.any():
            raise IndexError(f"Target {int(targets[outside][0])} is out of bounds.")


def _softmax(rows: Tensor, decoder: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (n, U) in the rows' precision, and ln p(target), (n, 1), in float32 or wider; in bf16 on a CPU p is rounded
    first, so ln p is up to 0.002 off."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    on_cpu = rows.device.type == "cpu"
    logits = _logits(rows, decoder)
    kept = None if on_cpu else _target_and_largest(logits, target)
    probabilities = torch.softmax(logits, -1, out=logits)  # in place: the logits are gone
    picked = probabilities.gather(-1, target)
    # The logarithm of the target's probability saves two passes over the logits, but is wrong where the probability has
    # underflowed. To look whether one has would stall a GPU, and there the passes cost little.
    if on_cpu and bool((picked >= torch.finfo(picked.dtype).tiny).all()):
        return probabilities, picked.to(wide).log_()
    target_logit, largest = kept or _target_and_largest(rows @ decoder.T, target)
    logsumexp = largest.to(wide) - probabilities.amax(-1, True).to(wide).log_()
    return probabilities, target_logit.to(wide) - logsumexp


def _logits(rows: Tensor, decoder: Tensor) -> Tensor:
    """The product (n, U); on a CPU in memory that is kept, and used again by this thread's next call."""
    if rows.device.type != "cpu":
        return rows @ decoder.T
    size = len(rows) * len(decoder)
    buffer: Tensor | None = getattr(_kept, "buffer", None)
    if buffer is None or buffer.dtype != rows.dtype or len(buffer) < size:
        with torch.inference_mode(False):  # evaluation's buffer serves training too
            buffer = _kept.buffer = torch.empty(size, dtype=rows.dtype)
    return torch.mm(rows, decoder.T, out=buffer[:size].view(len(rows), len(decoder)))


def _target_and_largest(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return logits.gather(-1, target), logits.amax(-1, True)


def _operands(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, layout: _Layout) -> tuple[Tensor, Tensor]:
    """The product's operands with the bias as a column: (N, P) and (U, P), with P = H + 1 and U = V both rounded up."""
    vocab_size, size = weight.shape
    shape = -(-vocab_size // ALIGN_VOCABULARY) * ALIGN_VOCABULARY, -(-(size + 1) // layout.align) * layout.align
    inputs = hidden.new_empty(len(hidden), shape[1], dtype=dtype)
    inputs[:, :size], inputs[:, size], inputs[:, size + 1 :] = hidden, 1, 0
    if layout.weight:
        decoder = weight.new_empty(shape[::-1], dtype=dtype).T
        for first in range(0, vocab_size, TRANSPOSED_AT_ONCE):
            part = weight[first : first + TRANSPOSED_AT_ONCE].to(dtype)
            decoder[first : first + len(part), :size] = part
    else:
        decoder = weight.new_empty(shape, dtype=dtype)
        decoder[:vocab_size, :size] = weight
    decoder[vocab_size:, :size], decoder[:, size + 1 :] = 0, 0
    decoder[:vocab_size, size] = 0 if bias is None else bias
    # The added types get no probability. -inf times 0 would be NaN, and TF32 would round `min` to -inf.
    decoder[vocab_size:, size] = torch.finfo(dtype).min / 2
    return inputs, decoder


def _chunks(rows: Tensor, decoder: Tensor, size: int | None = None) -> tuple[Tensor, ...]:
    """`rows` in equal pieces, such that a piece's logits take about `size` bytes (None = by CHUNK_BYTES), or are of one row."""
    total = len(rows) * len(decoder) * decoder.itemsize
    largest = CHUNK_BYTES * (LARGE_CHUNK if rows.device.type == "cpu" else 1)
    size = size or max(CHUNK_BYTES, min(total // 2, largest))
    return rows.tensor_split(min(max(1, -(-total // size)), max(1, len(rows))))
