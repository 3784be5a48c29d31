"""A stand-in for CUDA graphs on a CPU: what is captured is a list of operations on fixed places in memory.

As on a GPU, numbers that the host computed while capturing are frozen, tensors keep their addresses, and capturing changes nothing
that existed before. (There, kernels are not even run while capturing; here they are, and what they wrote is taken back.)
"""

from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, bool, list[Tensor]]] = []
        self._made: set[int] = set()  # storages that the capture made
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # what it wrote over, by storage
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func._schema.is_mutable:
            for tensor in given:
                if _address(tensor) not in self._made and _address(tensor) not in self._before:
                    self._before[_address(tensor)] = (tensor, tensor.clone())
        result = func(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        known = {_address(tensor) for tensor in given}
        new = [tensor for tensor in results if _address(tensor) not in known]
        self._made.update(_address(tensor) for tensor in new)
        self.operations.append((func, args, kwargs, torch.is_grad_enabled(), results))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, grad, results in self.operations:
                with torch.set_grad_enabled(grad):  # oneDNN's LSTM leaves out its work space where it is off
                    again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for place, tensor in zip(results, again, strict=True):
                    if _address(place) != _address(tensor):
                        place.copy_(tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda`'s graphs replaced by the stand-in."""
    monkeypatch.setattr("lstmlm.runtime.launch._check_cuda_graph", lambda config, accelerator: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
