"""What a container's limits leave, and that the process is after a run as it was before."""

import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lstmlm import train
from lstmlm.runtime import hardware
from lstmlm.runtime.hardware import cores, cpu_quota, ieee_products, memory_left, set_float32_products, settings_kept
from tests.helpers import SmallConfig, metrics

V2, V1 = "0::/a/b\n", "4:memory:/x\n3:cpu,cpuacct:/a\n"
CPU: list[tuple[str, dict[str, str], float]] = [
    (V2, {}, math.inf),
    (V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
    (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
    (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    (V1, {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
    (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
    (V2, {"a/b/cpu.max": "nonsense"}, math.inf),
]


def memory(folder: str, limit: str, used: int, names: tuple[str, str] = ("max", "current"), **cached: int) -> dict[str, str]:
    """The files of a group that limits its memory."""
    statistics = "".join(f"{name} {value}\n" for name, value in {"anon": 7, **cached}.items())
    return {f"{folder}/memory.{name}": value for name, value in zip((*names, "stat"), (limit, f"{used}\n", statistics), strict=True)}


INNER = memory("a/b", "1000\n", 600, active_file=100, inactive_file=200, file=900)
OUTER = memory("a", "5000\n", 700, active_file=0, inactive_file=0)
OLD = memory("memory/x", "1000\n", 900, ("limit_in_bytes", "usage_in_bytes"), active_file=1, total_active_file=20, total_inactive_file=30)
MEMORY: list[tuple[str, dict[str, str], float]] = [
    (V2, {}, math.inf),
    (V2, memory("a", "max\n", 50), math.inf),
    (V2, INNER | OUTER, 700),
    (V1, OLD, 150),
]


@pytest.mark.parametrize(
    ("measure", "own", "files", "expected"), [*((cpu_quota, *case) for case in CPU), *((memory_left, *case) for case in MEMORY)]
)
def test_limits(
    measure: Callable[[], float], own: str, files: dict[str, str], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    monkeypatch.setattr(hardware, "GROUPS", tmp_path / "groups")
    for place, limit in (("own", expected), ("none", math.inf)):  # the latter where there are no control groups
        monkeypatch.setattr(hardware, "OWN_GROUP", tmp_path / place)
        assert measure() == limit


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
RNN: Any = torch.backends.cudnn.rnn
READ: dict[str, Callable[[], Any]] = {
    "threads": torch.get_num_threads,
    "generator": lambda: torch.get_rng_state().tolist(),
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "matmul": lambda: MATMUL.fp32_precision,
    "conv": lambda: CUDNN.conv.fp32_precision,
    "rnn": lambda: RNN.fp32_precision,
    "older matmul": lambda: MATMUL.allow_tf32,
    "older cudnn": lambda: CUDNN.allow_tf32,
    "highest": torch.get_float32_matmul_precision,
}


def settings() -> dict[str, Any]:
    """Without an older switch that cannot be read, as the newer ones say something else."""
    found = {}
    for name, read in READ.items():
        with suppress(RuntimeError):
            found[name] = read()
    return found


def choose(what: str) -> None:
    if what == "all":
        torch.backends.fp32_precision = "tf32"
    elif what == "conv":
        CUDNN.conv.fp32_precision = "ieee"
    elif what == "older":
        MATMUL.allow_tf32, CUDNN.allow_tf32 = True, False
    elif what == "medium":
        torch.set_float32_matmul_precision("medium")


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def test_cores_are_those_that_psutil_counts() -> None:
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < psutil.cpu_count():
        pytest.skip("psutil counts those of other processes too")
    assert cores() == max(1, int(min(psutil.cpu_count(logical=False), cpu_quota())))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="macOS has none")
def test_a_core_whose_two_threads_are_this_process_s_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        place = tmp_path / f"cpu{number}/topology/thread_siblings_list"
        place.parent.mkdir(parents=True)
        place.write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(hardware, "CPUS", tmp_path)
    monkeypatch.setattr(hardware, "cpu_quota", lambda: math.inf)
    for own, number in (({1, 5}, 1), ({0, 1, 4, 5}, 2), ({0, 1, 2}, 3), (set(range(8)), 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, own=own: own)
        assert cores() == number


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    for ranks, threads in (("1", 8), ("3", 2), ("9", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert hardware.default_threads() == threads


def test_the_commit_is_of_this_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a project"]):
        subprocess.run([*git, *command], check=True)
    for place, found in (("lstmlm/runtime", True), (".venv/lib/site-packages/lstmlm/runtime", False)):
        monkeypatch.setattr(hardware, "__file__", str(tmp_path / place / "hardware.py"))
        (tmp_path / place).mkdir(parents=True)
        assert (hardware.git_state()["git_commit"] is not None) == found


@pytest.mark.parametrize("chosen", ["nothing", "all", "conv", "older"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.usefixtures("restored")
def test_how_products_are_computed(chosen: str, precision: str) -> None:
    choose(chosen)
    before = settings()
    with settings_kept():
        set_float32_products(precision)
        if precision == "fp32":
            assert MATMUL.fp32_precision == RNN.fp32_precision == "ieee", "whatever was chosen for all"
    assert settings() | before == settings()


@pytest.mark.parametrize("chosen", ["nothing", "all", "conv", "medium"])
@pytest.mark.usefixtures("restored")
def test_products_in_a_block_are_float32_where_training_uses_tf32(chosen: str) -> None:
    set_float32_products("tf32")
    choose(chosen)
    before = settings()
    assert MATMUL.fp32_precision == RNN.fp32_precision == "tf32"
    with ieee_products():
        assert MATMUL.fp32_precision == RNN.fp32_precision == "ieee"
    assert settings() | before == settings()


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp32"])
@pytest.mark.usefixtures("restored")
def test_older_code_can_read_how_products_are_computed(precision: str) -> None:
    set_float32_products(precision)
    assert CUDNN.allow_tf32 == (precision != "fp32")
    assert MATMUL.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
    with CUDNN.flags(enabled=False):  # what double backward of an LSTM needs
        pass


@pytest.mark.usefixtures("restored")
def test_a_run(small_config: SmallConfig, tmp_path: Path) -> None:
    """And a second one of the process, in a thread."""
    torch.set_num_threads(2)
    torch.manual_seed(5)
    before = settings()
    train(small_config("--train.max_steps=3", "--train.deterministic=true", run="a"))
    thread = threading.Thread(target=lambda: train(small_config("--train.max_steps=3", run="b")))
    thread.start()
    thread.join()
    assert settings() == before
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert torch.tensor(1e-310, dtype=torch.float64) > 0, "small numbers are not flushed to zero any more"
