"""What is set of the process for a run is afterwards as it was."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from lstmlm import Config, train
from lstmlm.runtime.hardware import set_float32_products, settings_kept

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
RNN: Any = torch.backends.cudnn.rnn


def settings() -> dict[str, Any]:
    """Without an older switch that cannot be read, as the newer ones say something else."""
    found = {
        "threads": torch.get_num_threads(),
        "generator": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": MATMUL.fp32_precision,
        "conv": CUDNN.conv.fp32_precision,
        "rnn": RNN.fp32_precision,
    }
    older: dict[str, Callable[[], object]] = {
        "older matmul": lambda: MATMUL.allow_tf32,
        "older cudnn": lambda: CUDNN.allow_tf32,
        "highest": torch.get_float32_matmul_precision,
    }
    for name, read in older.items():
        with suppress(RuntimeError):
            found[name] = read()
    return found


def choose(what: str) -> None:
    """What a caller may have set, by the newer and the older switches."""
    if what == "all":
        torch.backends.fp32_precision = "tf32"
    elif what == "conv":
        CUDNN.conv.fp32_precision = "ieee"
    elif what == "older":
        MATMUL.allow_tf32, CUDNN.allow_tf32 = True, False


@pytest.fixture
def restored() -> Iterator[None]:
    with settings_kept():
        yield
    torch.backends.fp32_precision = "none"


@pytest.mark.parametrize("chosen", ["nothing", "all", "conv", "older"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.usefixtures("restored")
def test_how_products_are_computed(chosen: str, precision: str) -> None:
    choose(chosen)
    before = settings()
    with settings_kept():
        set_float32_products(precision)
    assert settings() | before == settings()


@pytest.mark.usefixtures("restored")
def test_a_run(small_config: Callable[..., Config]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(5)
    before = settings()
    train(small_config("--train.max_steps=1", "--train.deterministic=true"))
    assert settings() == before
