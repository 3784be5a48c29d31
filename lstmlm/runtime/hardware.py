"""This machine: threads, memory, how a GPU multiplies, names and versions."""

import ctypes
import math
import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lstmlm.config import MOST_THREADS
from lstmlm.console import check

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS's, which determinism needs
_RNN: Any = torch.backends.cudnn.rnn  # its attribute is unknown to mypy
_CONV: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
# Of Linux: its CPUs, where control groups are mounted, and this process's own.
CPUS, GROUPS, OWN_GROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """Physical cores that this process may use, by affinity and by quota."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))  # macOS has none
    # Each core once, as Linux lists the threads of each.
    lists = [CPUS / f"cpu{number}/topology/thread_siblings_list" for number in usable]
    threads = {path.read_text() for path in lists if path.exists()}
    return max(1, int(min(len(threads) or len(usable), cpu_quota())))


def default_threads() -> int:
    """The physical cores of this process, divided among the ranks on this host; at least 1."""
    return max(1, cores() // local_ranks())


def local_ranks() -> int:
    """Ranks on this host, as the launcher says."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "1")
    check(value.isdecimal() and int(value) > 0, f"LOCAL_WORLD_SIZE is {value!r}, no number of processes: unset it")
    return int(value)


def cpu_quota() -> float:
    """CPUs that Linux's control groups give this process (a container's `--cpus`); infinite where there is no quota."""
    quota = math.inf
    for folder, is_first_version in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # no such file, or the word `max`
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_first_version else ("cpu.max",)
            most, period = (int(word) for name in names for word in (folder / name).read_text().split())
            if most > 0:
                quota = min(quota, most / period)
    return quota


def memory_left() -> float:
    """Bytes that Linux's control groups leave to this process (a container's `--memory`); infinite where there is no limit."""
    left = math.inf
    for folder, is_first_version in _control_groups("memory"):
        names = ("limit_in_bytes", "usage_in_bytes") if is_first_version else ("max", "current")
        with suppress(OSError, ValueError):
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in names)
            statistics = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            total = "total_" if is_first_version else ""
            cached = int(statistics[f"{total}active_file"]) + int(statistics[f"{total}inactive_file"])  # goes where it is needed
            left = min(left, limit - used + cached)
    return left


def _control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control group and of those above it, whose limits hold too; and whether they are of version 1."""
    with suppress(OSError):
        for line in OWN_GROUP.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = GROUPS / controller if controllers else GROUPS
            group = root / name.lstrip("/")
            yield from ((folder, bool(controllers)) for folder in (group, *group.parents) if folder.is_relative_to(root))


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still have on a device; of the host's, those of the swap space too."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    memory = psutil.virtual_memory()
    available = memory.total if sys.platform == "darwin" else memory.available  # macOS calls little available, and makes swap as needed
    return min(available, memory_left()) + psutil.swap_memory().free


def keep_memory() -> None:
    """Have glibc keep freed memory: every step frees and takes the same 100 MB, whose page faults can cost as much as the arithmetic."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def use_machine(threads: int | None = None) -> None:
    """Set up the process of a script, which has the machine to itself: `threads` CPU threads, 1 to 1024, None = the physical cores."""
    check(threads is None or 1 <= threads <= MOST_THREADS, f"threads must be from 1 to {MOST_THREADS}, not {threads}")
    torch.set_num_threads(threads or default_threads())
    keep_memory()


@contextmanager
def settings_kept() -> Iterator[None]:
    """Whatever a block sets of this process, for its threads, arithmetic, random numbers and warnings, is afterwards as it was.

    Not so for worker threads that PyTorch makes within the block: how numbers below the normal ones are taken is a setting of each thread.
    """
    threads, gpus = torch.get_num_threads(), range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    flushes = bool(torch.tensor(1e-310, dtype=torch.float64) == 0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    older: list[tuple[Any, bool]] = []  # of TF32
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
        with suppress(RuntimeError):  # the newer ones were set, to something that it cannot say
            older.append((switch, switch.allow_tf32))
    newer = [(switch, switch.fp32_precision) for switch in (torch.backends.cuda.matmul, _CONV, _RNN)]
    try:
        with torch.random.fork_rng(gpus), warnings.catch_warnings():
            yield
    finally:
        for switch, allowed in older:
            switch.allow_tf32 = allowed
        for switch, precision in newer:
            switch.fp32_precision = precision
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def set_float32_products(precision: str) -> None:
    """Choose how an NVIDIA GPU multiplies float32 numbers: TF32 under `train.precision` tf32 and, in the LSTM alone, bf16; else IEEE."""
    lstm = precision in ("tf32", "bf16")
    # The older switches set the newer ones too. Setting the newer ones would make an older one unreadable.
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = lstm
    _RNN.fp32_precision = "tf32" if lstm else "ieee"  # whatever torch.backends.fp32_precision says


@contextmanager
def ieee_products() -> Iterator[None]:
    """Compute float32 products in IEEE float32 within a block, even where the training uses TF32."""
    switches = torch.backends.cuda.matmul, _RNN
    before = [switch.fp32_precision for switch in switches]  # the older ones can't always be read or restored
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def device_kind(device: torch.device) -> str:
    """Name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Bytes of this process: on the `host` now, and on its `gpu`, where it has one, the most so far."""
    import psutil

    gpu = {"gpu": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}
    return {"host": psutil.Process().memory_info().rss, **gpu}


def peak_memory(device: torch.device) -> dict[str, float]:
    """The same, with the most so far on the `host` too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return memory_in_use(device) | {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def package_versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    return {name: version(name) for name in ("torch", "accelerate")}


def git_state() -> dict[str, Any]:
    """Commit of this package's git checkout, and whether files have changed since. None where it is installed, even within another's."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            return {"git_commit": commit.removesuffix("-dirty"), "git_dirty": commit.endswith("-dirty")}
    return {"git_commit": None, "git_dirty": None}
