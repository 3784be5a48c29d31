"""The memory that a run needs, in cases worked out by hand."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, train
from lstmlm.runtime import launch
from lstmlm.training import build
from tests.helpers import SmallConfig


def test_no_more_is_counted_than_a_run_takes(small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound, in a case worked out by hand: 60 types, E = H = 12, two layers, 20 columns, bptt 10."""
    config = launch.resolve_precision(small_config("--train.threads=1"))
    accelerator = launch.start(config)
    parameters = 60 * 12 + 60 + 2 * (2 * 48 * 12 + 2 * 48)
    assert parameters == sum(p.numel() for p in LSTMLanguageModel(config.model, 60).parameters())
    # Weight, gradient and Adam's two moments; and a checkpoint twice, without the gradient
    need = (16 + 24) * parameters + 20 * 10 * (12 + 2 * 5 * 12) * 4 + 8 * 50
    for free in (need, need - 1):
        monkeypatch.setattr(build, "free_memory", lambda device, free=free: free)
        with nullcontext() if free == need else pytest.raises(UserError, match="needs at least"):
            build._check_memory(config, 60, 1000, accelerator)


@pytest.mark.parametrize("full", ["cuda", "cpu"])
def test_the_memory_of_a_gpu_and_of_its_host(full: str, small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("cuda", 0), num_processes=2)
    monkeypatch.setattr(build, "free_memory", lambda device: 0 if device.type == full else 1e12)
    with pytest.raises(UserError, match=rf"of memory \({full}\), and 0\.0 GB are free: .* 10 columns"):
        build._check_memory(small_config(), 60, 1000, accelerator)


@pytest.mark.parametrize(
    "sizes", [["--model.hidden_size=65536", "--model.embedding_size=65536"], ["--model.num_layers=124", "--model.hidden_size=24"]]
)
def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(
    sizes: list[str], small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_memory", lambda device: 2e7)
    with pytest.raises(UserError, match=r"this run needs at least [\d,.]+ GB of memory \(cpu\), and 0\.0 GB are free: .* parameters"):
        train(small_config(*sizes))
    assert not (tmp_path / "run").exists()
