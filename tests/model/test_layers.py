"""The layers against PyTorch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lstmlm.model import layers
from lstmlm.model.lstm import LSTMFunction

needs_bf16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs AVX512-BF16")


def example(rows: int, columns: int, inputs: int, hidden: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(rows, columns, inputs), (columns, hidden), (columns, hidden)]
    shapes += [(4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,)]
    scale = [1.0, 0.5, 0.5, *[hidden**-0.5] * 3]
    return tuple((s * torch.randn(shape).double()).requires_grad_() for s, shape in zip(scale, shapes, strict=True))


def with_own_kernel(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return LSTMFunction.apply(x, h, c, *weights, torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)


def with_torch(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    weights = [w_ih, w_hh, bias, torch.zeros_like(bias)]
    raw, h, c = torch.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, True, False, False)
    return raw, h[0], c[0]


def test_gradcheck_of_the_own_kernel() -> None:
    arguments = example(4, 3, 5, 6)
    assert torch.autograd.gradcheck(with_own_kernel, arguments)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(with_own_kernel(*arguments)[0].sum(), arguments, create_graph=True)


@pytest.mark.parametrize("autocast", [False, pytest.param(True, marks=needs_bf16)])
def test_the_own_kernel_is_no_further_from_float64_than_torch(autocast: bool) -> None:
    exact_arguments = example(35, 20, 200, 300)
    seeds = [torch.randn(35, 20, 300), *torch.randn(2, 20, 300)]

    def run(function: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, autocast: bool) -> list[Tensor]:
        arguments = [argument.detach().to(dtype).requires_grad_() for argument in exact_arguments]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            results = function(*arguments)
        grads = [seed.to(result.dtype) for seed, result in zip(seeds, results, strict=True)]
        return [t.double() for t in (*results, *torch.autograd.grad(results, arguments, grads))]

    exact = run(with_torch, torch.float64, False)
    theirs, ours = (run(function, torch.float32, autocast) for function in (with_torch, with_own_kernel))
    for own, torchs, e in zip(ours, theirs, exact, strict=True):
        assert (own - e).norm() < 1.25 * (torchs - e).norm()


@pytest.mark.parametrize(
    ("size", "precision", "avx512_bf16", "amx", "own"),
    [
        (600, torch.bfloat16, True, True, True),
        (599, torch.bfloat16, True, True, False),
        (1000, torch.bfloat16, True, False, True),
        (999, torch.bfloat16, True, False, False),
        (1000, torch.bfloat16, False, False, False),
        (1000, None, True, True, False),
    ],
)
def test_the_kernel_follows_from_size_precision_and_processor(
    size: int, precision: torch.dtype | None, avx512_bf16: bool, amx: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is not None):
        assert layers._own_kernel("cpu", size) == own
        assert not layers._own_kernel("cuda", size)
