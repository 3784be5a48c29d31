"""Everything that knows there may be several ranks: start-up and its refusals, agreement on errors, stop signals."""

import ctypes
import dataclasses
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from types import FrameType
from typing import Any, Literal

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType as Hook
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from torch import distributed as dist
from torch.distributed import PrefixStore, Store

from lstmlm.config import Config, UsageError, UserError, print_line
from lstmlm.files import cannot_write

PRECISIONS: dict[Literal["auto", "fp32", "tf32", "bf16", "fp16"], str] = {
    "fp32": "no",
    "tf32": "no",
    "bf16": "bf16",
    "fp16": "fp16",
}  # ours -> Accelerate's
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_RNN: Any = torch.backends.cudnn.rnn  # its attribute is unknown to mypy
STOP_CHECK_STEPS = 10  # steps between two agreements of several ranks on whether to stop


def resolve_precision(config: Config) -> Config:
    """The configuration with `train.precision` auto replaced by what the launcher says.

    Raises:
        UsageError: Launcher and configuration contradict each other, or the precision is none of ours.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    launched = next((ours for ours, theirs in PRECISIONS.items() if theirs == launcher), None)
    wanted = config.train.precision
    if launched is None:
        raise UsageError(
            f"precision {launcher} is not supported: the model has no layer that would use it; "
            "launch with --mixed_precision no, bf16 or fp16"
        )
    # The launcher says `no` too when it was not asked, so only another answer is a contradiction.
    if wanted == "auto":
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=launched))
    elif launched not in ("fp32", wanted):
        raise UsageError(
            f"the launcher says --mixed_precision {launcher} but train.precision is {wanted}: make them agree, "
            "or leave train.precision at auto"
        )
    return config


def start(config: Config) -> Accelerator:
    """Build the `Accelerator` and set up this process: threads, memory, determinism.

    Args:
        config: With the precision resolved.

    Raises:
        UserError: The launch is not what it was meant to be, or the device cannot do the precision.
    """
    check_launch()
    keep_memory()
    torch.set_flush_denormal(True)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else several ranks on a CPU would not know of each other
            mixed_precision=PRECISIONS[config.train.precision],
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours is in the step
            kwargs_handlers=[
                InitProcessGroupKwargs(
                    init_method="restartable://", timeout=timedelta(minutes=config.train.timeout_minutes)
                ),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True,
                    comm_hook=Hook.BF16 if config.train.compress_gradients else Hook.NO,
                ),
            ],
        )
    except ValueError as error:
        raise UsageError(f"Accelerate cannot start: {' '.join(str(error).split())}") from None
    except (dist.DistError, RuntimeError) as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        raise UserError(
            f"the ranks did not find each other within {config.train.timeout_minutes:g} minutes: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    # After Accelerate, which sets both of these too.
    torch.set_num_threads(config.train.threads or default_threads())
    set_float32_products(config.train.precision)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UsageError(
            f"distributed type {accelerator.distributed_type.value} is not supported: the model is small and goes to every rank whole; "
            "launch with --multi_gpu"
        )
    world_size = accelerator.num_processes
    asked_for = int(os.environ.get("WORLD_SIZE", "1"))
    if asked_for != world_size:
        raise UsageError(
            f"{asked_for} processes were asked for (WORLD_SIZE) but {world_size} started: use "
            "`accelerate launch --multi_gpu --num_processes N --num_machines 1 scripts/train.py`"
        )
    with together(accelerator):
        _check_device(config.train.precision, accelerator.device)
        _check_cuda_graph(config, accelerator)
        if config.train.compress_gradients and (world_size == 1 or dist.get_backend() != "nccl"):
            raise UsageError("train.compress_gradients needs several ranks on GPUs (NCCL): leave it false here")
    check_alike(accelerator, "configuration", config.to_flat_dict())
    check_alike(accelerator, "package versions", package_versions())
    if world_size > config.data.batch_size:
        raise UsageError(
            f"{world_size} ranks but data.batch_size {config.data.batch_size}: every rank needs a column; "
            "start fewer ranks or raise data.batch_size"
        )
    return accelerator


def _restartable(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """The usual rendezvous, under a prefix of this start: a group that the launcher restarts (--max_restarts) may be given the
    store of the dead one, and must not connect to its addresses."""
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    yield PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store), rank, world_size


dist.register_rendezvous_handler("restartable", _restartable)


def check_launch() -> None:
    """Refuse a launch that would start fewer ranks than it was asked for, or runs that know nothing of each other.

    Raises:
        UsageError: With what was asked for, what was started, and the command that works.
    """
    world = os.environ.get("WORLD_SIZE")
    if "MASTER_ADDR" in os.environ and world is None:
        raise UsageError(
            "several processes were asked for but only one was started (distributed_type MULTI_CPU does that): on one CPU host use "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N --num_machines 1 scripts/train.py`"
        )
    if world is not None and not all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        raise UsageError(
            f"WORLD_SIZE is {world} in the environment, but this process was started as a run of its own (RANK, MASTER_ADDR or "
            "MASTER_PORT is missing): start it with `accelerate launch --num_processes N`, or unset WORLD_SIZE"
        )
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in (
        "true",
        "1",
        "yes",
    )
    if on_gpu and ranks > torch.cuda.device_count():
        raise UsageError(
            f"{ranks} ranks on this host but {torch.cuda.device_count()} GPUs: start one rank for each GPU"
        )


def default_threads() -> int:
    """Physical cores that this process may use, divided among the ranks on this host."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or usable, usable)
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_memory() -> None:
    """Have glibc keep freed memory: every step frees and takes the same 100 MB, whose page faults cost as much as the arithmetic."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def set_float32_products(precision: str) -> None:
    """Choose how an NVIDIA GPU multiplies float32 numbers.

    Args:
        precision: `train.precision`: TF32 under `tf32` and, in the LSTM alone, `bf16`; else IEEE.
    """
    lstm = precision in ("tf32", "bf16")
    # The older switches set the newer ones too; the other way round, an older one can't be read any more.
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = lstm
    _RNN.fp32_precision = "tf32" if lstm else "ieee"  # whatever torch.backends.fp32_precision says


@contextmanager
def ieee_products() -> Iterator[None]:
    """Compute products of float32 in float32 within a block, where the training may use TF32."""
    switches = torch.backends.cuda.matmul, _RNN
    before = [switch.fp32_precision for switch in switches]  # the older ones can't always be read, nor given back whole
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def package_versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    return {name: version(name) for name in ("torch", "accelerate")}


def check_alike(accelerator: Accelerator, what: str, values: dict[str, Any]) -> None:
    """Refuse to go on where `values` are not the same on every rank.

    Args:
        accelerator: Of this run.
        what: Name of the values in the message.
        values: Anything JSON can hold, by name.

    Raises:
        UserError: On every rank, naming the first value that differs and the ranks.
    """
    for rank, other in enumerate(gather_object([values])):
        if rank == 0:
            first = other
        for name in first:
            if other[name] != first[name]:
                raise UserError(
                    f"{what} differs between ranks: {name} is {first[name]} on rank 0 and {other[name]} on rank {rank}; "
                    "start every rank with the same command, files and packages"
                )


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Run a block on every rank; where it fails on one with a `UserError` or `OSError`, it fails on all with that error."""
    error: UserError | None = None
    try:
        yield
    except UserError as caught:
        error = caught
    except OSError as caught:
        error = UserError(cannot_write(caught))
    if accelerator.num_processes > 1:
        own = (error.status, str(error)) if error else None
        failed = [told for told in gather_object([own]) if told]
        if failed and error is None:
            status, text = failed[0]
            error = UsageError(text) if status == UsageError.status else UserError(text)
    if error is not None:
        raise error


def main_value(accelerator: Accelerator, value: Any) -> Any:
    """The main rank's value, on every rank."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def main_tensors(accelerator: Accelerator, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The main rank's tensors, on the CPU of every rank, so that only the main rank needs to see the files."""
    if accelerator.num_processes == 1:
        assert tensors is not None
        return tensors
    shapes = main_value(
        accelerator, tensors and {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    )
    received = {}
    for name, (shape, dtype) in shapes.items():
        buffer = (
            tensors[name].to(accelerator.device)
            if tensors
            else torch.empty(shape, dtype=dtype, device=accelerator.device)
        )
        dist.broadcast(buffer, 0)
        received[name] = buffer.cpu()
    return received


def sum_over_ranks(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum of a tensor over ranks, in its own precision; the tensor itself where there is one rank."""
    if accelerator.num_processes > 1:
        values = values.to(accelerator.device, copy=True)
        dist.all_reduce(values)
    return values


class StopRequest:
    """Whether somebody asked the run to stop: SIGTERM, SIGUSR1 or SIGINT on any rank.

    The first signal sets a flag that is read between steps. A later one ends the process at once, as it would have without
    us; within a second it is taken for the same notice, which a launcher and a scheduler may both deliver.

    Args:
        accelerator: Of the run.
        timeout_minutes: How long a rank waits for the others' answer.
    """

    def __init__(self, accelerator: Accelerator, timeout_minutes: float) -> None:
        self._signal = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._several = accelerator.num_processes > 1
        # In host memory, so that to ask does not wait for a GPU.
        self._group = None
        if self._several:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._since = number, time.monotonic()
        elif time.monotonic() > self._since + 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def alone(self) -> bool:
        """Whether this run of one rank was told to stop; with several, only `agreed` answers."""
        return bool(self._signal) and not self._several

    def agreed(self, step: int, at_event: bool) -> int:
        """The signal that some rank got, or 0; every rank calls this with the same arguments and gets the same answer."""
        if not self._several:
            return self._signal
        if not at_event and step % STOP_CHECK_STEPS:
            return 0
        number = torch.tensor(self._signal)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)


def device_kind(device: torch.device) -> str:
    """Name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check_cuda_graph(config: Config, accelerator: Accelerator) -> None:
    if not config.train.cuda_graph:
        return
    obstacle = (
        f"this is a {accelerator.device.type}"
        if accelerator.device.type != "cuda"
        else f"there is a group of {accelerator.num_processes} rank(s)"
        if accelerator.distributed_type is not DistributedType.NO  # DDP, even around one
        else "fp16 waits for the device at every step"
        if config.train.precision == "fp16"
        else "train.accumulate is not 1"
        if config.train.accumulate > 1
        else None
    )
    if obstacle:
        raise UsageError(
            f"train.cuda_graph is for one GPU without torchrun, train.accumulate 1 and not fp16, but {obstacle}: leave it false"
        )


def _check_device(precision: str, device: torch.device) -> None:
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UsageError("train.precision tf32 needs an NVIDIA GPU of the Ampere generation or later; use fp32")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("train.precision fp16 needs a GPU: a CPU would silently compute in fp32; use fp32 or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("train.precision bf16: this GPU has no bf16 arithmetic; use fp32 or fp16")
    if precision == "bf16" and device.type == "cpu":
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.nn.LSTM(8, 8)(torch.zeros(1, 1, 8))
        except RuntimeError:
            raise UsageError(
                "train.precision bf16: this CPU cannot run an LSTM in bf16 (no AVX512-BF16 or AMX); use fp32"
            ) from None


def print_main(accelerator: Accelerator, message: str) -> None:
    """A line on standard error, from the main rank."""
    if accelerator.is_main_process:
        print_line(message)
