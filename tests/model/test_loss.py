"""The head against plain PyTorch in float64."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlm.model import loss
from lstmlm.model.loss import linear_cross_entropy, summed_and_token_nll, token_nll, token_scores
from tests.helpers import Watch


def example(n: int, v: int, h: int, bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * 1000 + v)
    hidden = torch.randn(n, h, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, h, generator=generator, dtype=dtype).mul_(0.3).requires_grad_()
    b = torch.randn(v, generator=generator, dtype=dtype).requires_grad_() if bias else None
    targets = torch.randint(v, (n,), generator=generator)
    targets[::3] = -100
    targets[0] = v - 1
    return hidden, weight, b, targets  # type: ignore[return-value]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, ignore_index=-100, reduction="sum")


@pytest.fixture(params=[(1 << 26, False, False, 8), (200, True, True, 32), (1, False, True, 8)])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sizes of chunks, each with another layout of the products."""
    size, *layout = request.param
    monkeypatch.setattr(loss, "CHUNK_BYTES", size)
    monkeypatch.setattr(loss, "SCORES_CHUNK_BYTES", size)
    monkeypatch.setattr(loss, "TRANSPOSED_AT_ONCE", 7)
    monkeypatch.setattr(loss, "_layout", lambda hidden, dtype: loss._Layout(*layout))
    return size


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 2, 23])
def test_sum_and_tokens(n: int, bias: bool, few: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "FEW_ROWS", few)
    hidden, weight, b, targets = example(n, 31, 5, bias)
    inputs = [t for t in (hidden, weight, b) if t is not None]
    theirs = F.cross_entropy(F.linear(hidden, weight, b), targets, reduction="none")
    ours, of_tokens = summed_and_token_nll(hidden, weight, b, targets)
    assert not of_tokens.requires_grad
    torch.testing.assert_close((ours, of_tokens), (theirs.sum(), theirs))
    torch.testing.assert_close(token_nll(hidden, weight, b, targets), theirs.detach())
    expected = torch.autograd.grad(theirs.sum() * 0.3, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours * 0.3, inputs), expected)
    torch.testing.assert_close(torch.autograd.grad(linear_cross_entropy(hidden, weight, b, targets) * 0.3, inputs), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_scores_by_their_definitions(bias: bool, chunk_bytes: int) -> None:
    hidden, weight, b, targets = (t if t is None else t.detach() for t in example(23, 31, 5, bias))
    targets, logits = targets.clamp(min=0), F.linear(hidden, weight, b)
    scores = token_scores(hidden, weight, b, targets)
    p = logits.softmax(-1)
    torch.testing.assert_close(scores.nll, -p.log()[torch.arange(23), targets])
    torch.testing.assert_close(scores.entropy, torch.distributions.Categorical(p).entropy())
    expected = [1 + sum(x > row[t] for x in row) for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert scores.rank.tolist() == expected


def test_scores_of_the_all_but_certain_and_of_the_all_but_impossible() -> None:
    """Entropy and nll are right to a float32's rounding of 1, and a probability that underflows has an nll."""
    logits = torch.tensor([[500.0, 480.0, -12_000.0]])
    hidden, weight = torch.ones(3, 1), logits.T.contiguous()
    scores = token_scores(hidden, weight, None, torch.tensor([0, 1, 2]))
    p = 1 / (1 + math.exp(20))
    torch.testing.assert_close(scores.nll, torch.tensor([p, 20 + p, 12_500.0]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scores.entropy, torch.tensor([p * 21] * 3), rtol=1e-6, atol=1e-7)
    assert scores.rank.tolist() == [1, 2, 3]
    assert token_scores(hidden[:2], torch.tensor([[1.0], [2.0], [2.0], [2.0]]), None, torch.tensor([0, 2])).rank.tolist() == [4, 1]


def at_real_size(function: Callable[..., Tensor], dtype: torch.dtype, autocast: bool = False) -> list[Tensor]:
    """The nll of 300 rows of 100 units, and the gradients."""
    *values, targets = (t.detach() for t in example(300, 33_278, 100, dtype=torch.float32))
    inputs = [t.to(dtype).requires_grad_() for t in values]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        nll = function(*inputs, targets)
    assert nll.dtype == dtype
    return [t.double() for t in (nll.detach(), *torch.autograd.grad(nll, inputs))]


kept_at_real_size = functools.cache(at_real_size)  # plain PyTorch's, which no layout changes


@pytest.mark.parametrize(
    ("precision", "loss_error", "layout"),
    [("fp32", 1e-6, None), ("bf16", 1e-3, None), ("bf16", 1e-3, (True, True, 32)), ("bf16", 1e-3, (False, True, 8))],
)
def test_no_further_from_float64_than_plain_pytorch_at_real_size(
    precision: str, loss_error: float, layout: tuple[bool, bool, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far plain PyTorch is depends on the processor's products: float32 gradients 3e-7 to 1.4e-6, bf16 2e-3 to 4e-3."""
    if layout is not None:
        monkeypatch.setattr(loss, "_layout", lambda hidden, dtype: loss._Layout(*layout))
    exact, theirs = kept_at_real_size(plain, torch.float64), kept_at_real_size(plain, torch.float32, precision == "bf16")
    ours = at_real_size(linear_cross_entropy, torch.float32, precision == "bf16")
    assert abs(ours[0] - exact[0]) / exact[0] < loss_error
    for a, b, e in zip(ours[1:], theirs[1:], exact[1:], strict=True):
        assert (a - e).norm() < 1.25 * (b - e).norm()


@pytest.mark.parametrize(
    ("rows", "size", "precision", "amx", "expected"),
    [
        (5600, 400, torch.bfloat16, True, (True, True, 32)),
        (1000, 650, torch.bfloat16, True, (False, True, 8)),
        (600, 100, torch.bfloat16, True, (False, True, 8)),
        (400, 100, torch.bfloat16, True, (False, False, 8)),
        (5600, 400, torch.float32, True, (False, False, 8)),
        (5600, 400, torch.bfloat16, False, (False, False, 8)),
    ],
)
def test_the_layout_follows_from_sizes_precision_and_processor(
    rows: int, size: int, precision: torch.dtype, amx: bool, expected: tuple[bool, bool, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert loss._layout(torch.empty(rows, size), precision) == expected


@pytest.mark.parametrize("autocast", [False, True])
def test_no_float32_tensor_is_as_large_as_the_logits(autocast: bool) -> None:
    """At the reference model's size, over forward and backward."""
    hidden, weight, bias, targets = example(600, 33_278, 100, dtype=torch.float32)
    sizes: list[int] = []
    watch = Watch(lambda func, args, made: sizes.extend(tensor.numel() for tensor in made if tensor.dtype == torch.float32))
    with watch, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        linear_cross_entropy(hidden, weight, bias, targets).backward()
    assert weight.numel() <= max(sizes) <= 600 * 33_278 * 0.51


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_probability_that_underflows_still_has_its_nll(precision: torch.dtype) -> None:
    hidden = torch.tensor([[1.0], [1.0], [-3.0]])
    weight = torch.tensor([[0.0], [200.0]])
    targets = torch.tensor([0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        nll = linear_cross_entropy(hidden, weight, None, targets)
    assert nll.item() == pytest.approx(200 + 0 + 600, rel=4e-3)


# float32 rounds logits of 30,000 to 2e-3.
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 2e-3), (torch.float64, 1e-10)])
def test_logits_far_below_zero(precision: torch.dtype, bound: float) -> None:
    """The types that fill the vocabulary up stay without probability."""
    hidden, weight, bias, targets = example(7, 9, 4, dtype=precision)
    assert bias is not None
    far = (bias.detach() - 3e4).requires_grad_()
    nll, expected = linear_cross_entropy(hidden, weight, far, targets), plain(hidden, weight, far, targets)
    torch.testing.assert_close(nll, expected, rtol=bound, atol=bound)
    inputs = [hidden, weight, far]
    torch.testing.assert_close(torch.autograd.grad(nll, inputs), torch.autograd.grad(expected, inputs), rtol=bound, atol=bound)
    per_token = token_nll(hidden, weight, far, targets)
    torch.testing.assert_close(per_token.sum(), expected.detach(), rtol=bound, atol=bound)


def test_only_gradients_that_are_asked_for_are_formed() -> None:
    hidden, weight, bias, targets = example(8, 9, 4)
    functions: list[Any] = []
    for grad, products in ((False, 1), (True, 1 + 3)):
        with torch.set_grad_enabled(grad), Watch(lambda func, args, made: functions.append(func.overloadpacket)):
            linear_cross_entropy(hidden, weight, bias, targets)
        assert functions.count(torch.ops.aten.mm) == products
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, bias, targets), [hidden], create_graph=True)
    frozen = linear_cross_entropy(hidden, weight.detach(), None, targets)
    (grad,) = torch.autograd.grad(frozen, [hidden])
    (expected,) = torch.autograd.grad(plain(hidden, weight, None, targets), [hidden])
    torch.testing.assert_close(grad, expected)


def test_work_memory_of_one_call_is_not_seen_by_another() -> None:
    """Sizes and precisions in turn, evaluation among them, against plain PyTorch; backward after other calls."""
    pending = []
    for n, dtype in ((8, torch.float64), (30, torch.float32), (5, torch.float64), (9, torch.float32)):
        hidden, weight, bias, targets = example(n, 70, 4, dtype=dtype)
        pending.append((hidden, weight, bias, targets, linear_cross_entropy(hidden, weight, bias, targets)))
        with torch.inference_mode():
            token_nll(*(t.detach() for t in example(50 + n, 90, 4, dtype=dtype)))
    for hidden, weight, bias, targets, nll in pending:
        expected = plain(hidden, weight, bias, targets)
        torch.testing.assert_close(nll, expected)
        inputs = [hidden, weight, bias]
        torch.testing.assert_close(torch.autograd.grad(nll, inputs), torch.autograd.grad(expected, inputs))


def test_all_targets_ignored() -> None:
    hidden, weight, bias, targets = example(6, 9, 4)
    nll = linear_cross_entropy(hidden, weight, bias, targets.fill_(-100))
    assert not any(value.any() for value in (nll, *torch.autograd.grad(nll, [hidden, weight, bias])))


@pytest.mark.parametrize("target", [31, 40, 63, 64, -1])
def test_a_target_that_is_no_type_is_refused(target: int) -> None:
    """31 types are filled up to 64 rows, which are no types either."""
    hidden, weight, bias, targets = example(6, 31, 5)
    targets[2] = target
    for function in (linear_cross_entropy, token_nll, token_scores):
        with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
            function(hidden, weight, bias, targets)  # type: ignore[operator]
