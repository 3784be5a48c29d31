"""A stand-in for a GPU on a CPU: tensors that say they are on the device `meta`, but compute, on the CPU.

As on a GPU, an operation takes no tensor of the CPU beside them, but numbers; and whatever reads one on the host is noted, as there
the host would wait for the device.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
READING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Away(Tensor):
    """A tensor of the device; `numbers` has its numbers."""

    numbers: Tensor
    waits: list[str]  # files whose lines have waited for the device, of the device in use

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "Away":
        tensor: Away = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, numbers.stride(), numbers.storage_offset(), dtype=numbers.dtype, device=DEVICE
        )
        tensor.numbers = numbers
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        _wait()
        return self.numbers.tolist()


class _LSTM(torch.autograd.Function):
    """`torch.lstm` as one operation, as cuDNN's is; PyTorch itself would make it of hundreds."""

    @staticmethod
    def forward(ctx: Any, lstm: Any, options: Any, *given: Away) -> tuple[Away, ...]:
        ctx.given = inputs, h, c, *weights = [tensor.numbers.detach().requires_grad_() for tensor in given]
        with torch.enable_grad():
            ctx.results = lstm(inputs, (h, c), weights, *options)
        return tuple(Away(result.detach()) for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *grads: Away) -> Any:
        return None, None, *map(Away, torch.autograd.grad(ctx.results, ctx.given, [grad.numbers for grad in grads]))


class _Factories(TorchDispatchMode):
    """What is made on the device, or moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = {id(tensor.numbers): tensor for tensor in given if isinstance(tensor, Away)}
    copies = func in (aten.copy_.default, aten._to_copy.default)
    assert copies or not away or all(isinstance(tensor, Away) or not tensor.dim() for tensor in given), f"{func}: tensors of two devices"
    if func is aten.copy_.default:
        to_device = isinstance(args[0], Away)
    else:
        to_device = bool(away) if kwargs.get("device") is None else torch.device(kwargs["device"]) == DEVICE
    picks = func in INDEXING and any(tensor is not None and tensor.dtype == torch.bool for tensor in args[1])
    if away and (func in READING or picks or (copies and not to_device)):
        _wait()
    numbers = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
    if not to_device:
        return numbers
    # What an operation works on in place stays the same tensor.
    return tree_map(lambda result: away.get(id(result), Away(result)) if isinstance(result, Tensor) else result, numbers)


def _numbers(argument: Any) -> Any:
    if isinstance(argument, torch.device):
        return torch.device("cpu")
    return argument.numbers if isinstance(argument, Away) else argument


def _wait() -> None:
    lines = [Path(frame.filename) for frame in traceback.extract_stack()]
    Away.waits += [path.name for path in lines if "lstmlm" in path.parts][-1:]


@pytest.fixture
def another_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The stand-in, which Accelerate takes where ACCELERATE_TORCH_DEVICE names it."""
    optimizer = sys.modules["torch.optim.optimizer"]  # whose name torch.optim takes away
    enabled, tensor, own_to, own_lstm = torch.is_autocast_enabled, torch.tensor, nn.Module.to, torch.lstm

    def lstm(inputs: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *options: Any) -> tuple[Tensor, ...]:
        if not isinstance(inputs, Away):
            return own_lstm(inputs, state, weights, *options)
        given = [inputs, *state, *weights]
        assert all(isinstance(tensor, Away) for tensor in given), "an LSTM of two devices"
        result: tuple[Tensor, ...] = _LSTM.apply(own_lstm, options, *given)
        return result

    def to(module: nn.Module, device: Any, *args: Any, **kwargs: Any) -> nn.Module:
        if device is None or torch.device(device) != DEVICE:
            return own_to(module, device, *args, **kwargs)
        moved: dict[Tensor, nn.Parameter] = {}  # a tied one once
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if not isinstance(parameter, Away):
                    setattr(part, name, moved.setdefault(parameter, nn.Parameter(parameter.detach().to(DEVICE))))
        return module

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(torch, "lstm", lstm)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **kwargs: nullcontext() if kind == DEVICE.type else autocast(kind, **kwargs))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device != DEVICE.type and enabled(device))
    # `torch.tensor` makes a tensor without telling the mode.
    monkeypatch.setattr(torch, "tensor", lambda data, *, device=None, dtype=None: tensor(data, dtype=dtype).to(device or "cpu"))
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    monkeypatch.setattr("lstmlm.runtime.launch._check_device", lambda precision, device: None)
    Away.waits = []
    with _Factories():
        yield DEVICE
