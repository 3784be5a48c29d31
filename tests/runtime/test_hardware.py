"""What a container's limits leave, and that the process is after a run as it was before."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import Config, train
from lstmlm.runtime.hardware import cpu_quota, memory_left, set_float32_products, settings_kept

V2, V1 = "0::/a/b\n", "4:memory:/x\n3:cpu,cpuacct:/a\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, math.inf),
        (V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (V1, {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        (V2, {"a/b/cpu.max": "nonsense"}, math.inf),
    ],
)
def test_quota(own: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == expected


def stat(**values: int) -> str:
    return "".join(f"{name} {value}\n" for name, value in {"anon": 7, **values}.items())


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, math.inf),
        (V2, {"a/memory.max": "max\n", "a/memory.current": "50\n", "a/memory.stat": stat()}, math.inf),
        (
            V2,
            {
                "a/b/memory.max": "1000\n",
                "a/b/memory.current": "600\n",
                "a/b/memory.stat": stat(active_file=100, inactive_file=200, file=900),
                "a/memory.max": "5000\n",
                "a/memory.current": "700\n",
                "a/memory.stat": stat(active_file=0, inactive_file=0),
            },
            700,
        ),
        (
            V1,
            {
                "memory/x/memory.limit_in_bytes": "1000\n",
                "memory/x/memory.usage_in_bytes": "900\n",
                "memory/x/memory.stat": stat(active_file=1, total_active_file=20, total_inactive_file=30),
            },
            150,
        ),
    ],
)
def test_memory(own: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    assert memory_left(tmp_path / "groups", tmp_path / "own") == expected


def test_none_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") == math.inf
    assert memory_left(tmp_path, tmp_path / "none") == math.inf


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
