"""The start of a run: the `Accelerator`, and the launches that are refused."""

import dataclasses
import gc
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DDPCommunicationHookType as Hook
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import distributed as dist
from torch.distributed import PrefixStore, Store

from lstmlm.config import Config
from lstmlm.console import UsageError, UserError, check, one_line
from lstmlm.runtime import hardware
from lstmlm.runtime.distributed import check_alike, fail_together

# What a launcher's configuration, or another job's environment, may set and no run of ours can do
FOREIGN_SETTINGS = "USE_DEEPSPEED USE_MEGATRON_LM USE_FSDP USE_PARALLELISM_CONFIG USE_SAGEMAKER FP8_BACKEND DYNAMO_BACKEND DEBUG_MODE"
FOREIGN = [f"ACCELERATE_{name}" for name in FOREIGN_SETTINGS.split()]
USE_LAUNCHER = (
    "start ranks with `accelerate launch --multi_gpu --num_processes N --num_machines 1 scripts/train.py`, on CPUs with "
    "ACCELERATE_USE_CPU=true before it"
)
OF_A_LAUNCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher tells each rank
OF_OTHERS = ("SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # processes that other programs start


def resolve_precision(config: Config) -> Config:
    """The configuration with `train.precision` auto as the launcher says; a UsageError where the two contradict, or it is not supported."""
    launched: Any = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    check(launched in ("no", "bf16", "fp16"), f"precision {launched} is not supported: launch with --mixed_precision no, bf16 or fp16")
    # The launcher also says `no` where nobody asked for a precision, so only another answer contradicts the configuration.
    wanted = config.train.precision
    agree = wanted == "auto" or launched in ("no", wanted)
    check(agree, f"the launcher says --mixed_precision {launched} but train.precision is {wanted}: make them agree, or leave it at auto")
    if wanted == "auto":
        wanted = "fp32" if launched == "no" else launched
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=wanted))


@contextmanager
def started(config: Config) -> Iterator[Accelerator]:
    """`start` for the length of a block. After it the ranks have parted and this process is as it was, unless it
    fails alone under NCCL."""
    accelerator, stay = None, is_initialized() or dist.is_initialized()  # what the caller has set up stays
    with hardware.settings_kept():
        try:
            accelerator = start(config)
            yield accelerator
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they may hold the DDP wrapper
            # NCCL's groups end together: a rank that fails alone would wait here, before it tells why, for those that wait for it
            # (pytorch#141510, torchtitan#1342). Its process should end instead. A UserError is all ranks' (`fail_together`).
            stay |= not isinstance(error, UserError) and dist.is_initialized() and dist.get_backend() == "nccl"
            raise
        finally:
            if not stay:
                # The process groups go last. A DDP wrapper that outlived them would end them from C++, holding Python's lock, and wait
                # for gloo's thread, which may wait for that lock (pytorch#56297). The run has let go of its own; here Accelerate does.
                if accelerator is not None:
                    accelerator.free_memory()
                gc.collect()
                if dist.is_initialized():
                    dist.destroy_process_group()
                AcceleratorState._reset_state(reset_partial_state=True)


def start(config: Config) -> Accelerator:
    """Build the `Accelerator` and set up this process: threads, determinism.

    Raises:
        UserError: The launch did not start what was asked for, or the device cannot compute in the precision, which is resolved.
    """
    check_launch()
    precision = config.train.precision
    torch.set_flush_denormal(True)  # numbers below the normal ones, to which Adam's moments decay, are slow
    warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)  # numpy before 2.4 warns of that
    if config.train.deterministic:
        os.environ.setdefault(hardware.WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),  # without it, several ranks on a CPU form no group, and a Mac takes its GPU
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # TrainStep accumulates by itself
            kwargs_handlers=[
                InitProcessGroupKwargs(init_method="restartable://", timeout=timedelta(minutes=config.train.timeout_minutes)),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True, comm_hook=Hook.BF16 if config.train.compress_gradients else Hook.NO
                ),
            ],
        )
    except (ValueError, AssertionError, ImportError, NotImplementedError) as error:
        # The environment asks for what this machine or PyTorch has not.
        raise UsageError(f"Accelerate cannot start: {one_line(error)}") from None
    except (dist.DistError, RuntimeError) as error:
        if "WORLD_SIZE" not in os.environ or dist.is_initialized():  # the latter: they did, and this rank's GPU is at fault
            raise
        raise UserError(f"the ranks did not find each other within {config.train.timeout_minutes:g} minutes: {one_line(error)}") from None
    if accelerator.device.type == "cuda" and accelerator.device.index is not None:
        torch.cuda.set_device(accelerator.device)  # which Accelerate leaves out under ACCELERATE_TORCH_DEVICE
    # After Accelerate, which sets both of these too.
    torch.set_num_threads(config.train.threads or hardware.default_threads())
    hardware.set_float32_products(precision)
    # DropConnect has a new recurrent weight in each segment. cuDNN copies it into one buffer with the layer's others, and says so.
    warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
    kind, world_size, asked_for = accelerator.distributed_type, accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    fits = kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU) and asked_for == world_size
    told = f"{asked_for} processes were asked for, and {world_size} of the type {kind.value} started, which cannot train"
    check(fits, f"{told}: {USE_LAUNCHER}")
    with fail_together(accelerator):
        _check_device(precision, accelerator.device)
        if config.train.cuda_graph:
            _check_cuda_graph(config, accelerator)
        if config.train.compress_gradients:
            nccl = world_size > 1 and dist.get_backend() == "nccl"
            check(nccl, "train.compress_gradients needs several ranks on GPUs (NCCL): leave it false here")
    check_alike("configuration", config.to_flat_dict())
    check_alike("package versions", hardware.package_versions())
    columns = config.data.batch_size
    check(world_size <= columns, f"{world_size} ranks but data.batch_size {columns}: each needs a column; start fewer or raise it")
    return accelerator


_groups = count()  # that these processes have joined


def _restartable(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """The usual rendezvous, under a prefix that names this start: a group that the launcher restarts (--max_restarts), or a second
    one of these processes, may get the store of the group before it, and must not connect to the addresses in it."""
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    yield PrefixStore(f"start_{restart}_{next(_groups)}", store), rank, world_size


dist.register_rendezvous_handler("restartable", _restartable)


def check_launch() -> None:
    """Refuse (UsageError) a launch that would start fewer ranks than were asked for, or several runs that do not know of each other."""
    says = os.environ
    kinds = "DeepSpeed, Megatron-LM, FSDP, other parallelism, SageMaker, FP8, Dynamo and Accelerate's debug mode are not supported"
    for name in FOREIGN:
        off = says.get(name, "").lower() in ("", "0", "no", "none", "off", "false")
        check(off, f"{name} is {says.get(name)}: {kinds}; unset it, or take it out of the launcher's configuration")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *OF_OTHERS):
        check(says.get(name, "1").isdecimal(), f"{name} is {says.get(name)!r} in the environment, no number: unset it")
    there = [name for name in (*OF_A_LAUNCH, "LOCAL_WORLD_SIZE") if name in says]
    missing = [name for name in OF_A_LAUNCH if name not in says]
    alone = f"the environment has {', '.join(there)} but not {', '.join(missing)}, so this process would train alone"
    fits = not (there and missing) or says.get("WORLD_SIZE") == "1"  # Accelerate's MULTI_CPU leaves some out; a group of one needs none
    check(fits, f"{alone}: {USE_LAUNCHER}, or unset {' and '.join(there)}")
    for name in OF_OTHERS:
        several = f"{name} is {says.get(name)}: srun or mpirun started several processes, and each would train a run of its own"
        check(not missing or int(says.get(name, "1")) <= 1, f"{several}; {USE_LAUNCHER}, see scripts/cluster/, or unset {name}")
    ranks, gpus = hardware.local_ranks(), torch.cuda.device_count()
    wants_cpu, named = says.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes"), says.get("CUDA_VISIBLE_DEVICES", "")
    hidden = named in ("", "-1", "NoDevFiles", "none", "void", "10000")  # as schedulers say "no GPU"
    remedy = "see what nvidia-smi says, and whether this PyTorch is for CUDA; to train on the CPU, set it to -1"
    check(torch.cuda.is_available() or wants_cpu or hidden, f"CUDA_VISIBLE_DEVICES is {named}, but PyTorch finds no GPU: {remedy}")
    enough = wants_cpu or not torch.cuda.is_available() or ranks <= gpus
    check(enough, f"{ranks} ranks on this host but {gpus} GPUs: start one rank for each GPU; every rank must see all GPUs of its host")


def _check_cuda_graph(config: Config, accelerator: Accelerator) -> None:
    several = accelerator.distributed_type is not DistributedType.NO  # one rank under torchrun too
    obstacles = {
        f"this is a {accelerator.device.type}": accelerator.device.type != "cuda",
        f"there is a group of {accelerator.num_processes} rank(s)": several,
        "fp16 changes its scale from step to step": config.train.precision == "fp16",
        "train.accumulate is not 1": config.train.accumulate > 1,
        "data.bptt_jitter gives every segment another length": config.data.bptt_jitter > 0,
    }
    for reason, stands in obstacles.items():
        check(not stands, f"train.cuda_graph is for one GPU without torchrun and for steps all alike, but {reason}: leave it false")


def _check_device(precision: str, device: torch.device) -> None:
    gpu = device.type == "cuda"
    check(not gpu or torch.cuda.is_available(), f"ACCELERATE_TORCH_DEVICE is {device}, but PyTorch finds no such GPU: unset it")
    check(gpu or device.type == "cpu", f"ACCELERATE_TORCH_DEVICE is {device}, but training is for CPUs and CUDA GPUs: unset it")
    if gpu:
        try:  # this PyTorch may have no kernels for such a GPU, its cuDNN may not load, and others may have all of it
            torch.nn.LSTM(8, 8, device=device)(torch.zeros(1, 1, 8, device=device))
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            told = f"PyTorch {torch.__version__} cannot compute on {hardware.device_kind(device)}: {one_line(error, 120)}"
            remedy = "see what nvidia-smi says, and whether this PyTorch is built for this GPU; CUDA_VISIBLE_DEVICES=-1 takes the CPU"
            raise UserError(f"{told}; {remedy}") from None
    computes, needed = True, ""
    if precision == "tf32":
        computes, needed = gpu and torch.cuda.get_device_capability(device) >= (8, 0), "an NVIDIA GPU of the Ampere generation or later"
    if precision == "fp16":  # a CPU would silently compute in fp32
        computes, needed = gpu, "a GPU"
    if precision == "bf16" and gpu:
        computes, needed = torch.cuda.is_bf16_supported(including_emulation=False), "a GPU with bf16 arithmetic"
    if precision == "bf16" and not gpu:
        needed = "a GPU, or a CPU that can run an LSTM in bf16 (AVX512-BF16 or AMX)"
        computes = torch.backends.mkldnn.is_available()  # without it (on macOS) PyTorch computes, but slowly
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.nn.LSTM(8, 8)(torch.zeros(1, 1, 8))
        except RuntimeError:
            computes = False
    other = "use fp16 or fp32, and a launcher's --mixed_precision fp16 or no" if gpu else "use fp32"
    check(computes, f"train.precision {precision} needs {needed}, and this is {hardware.device_kind(device)}: {other}")
