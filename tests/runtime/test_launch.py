"""Launches that are refused before anything starts, and how a process leaves its group."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from lstmlm import Config
from lstmlm.console import UsageError, UserError
from lstmlm.runtime import launch
from lstmlm.runtime.launch import FOREIGN, OF_A_LAUNCH, OF_OTHERS, check_launch


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OF_A_LAUNCH, "LOCAL_WORLD_SIZE", *OF_OTHERS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_of_other_launchers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in FOREIGN:
        monkeypatch.delenv(other, raising=False)
    for harmless in ("", "no", "false", "NO"):
        monkeypatch.setenv(name, harmless)
        check_launch()
    monkeypatch.setenv(name, "inductor" if "DYNAMO" in name else "true")
    with pytest.raises(UsageError, match=name):
        check_launch()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ("LOCAL_WORLD_SIZE=", "LOCAL_WORLD_SIZE is '' in the environment, no number: unset it"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1 LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE is '0', no number of"),
        ("LOCAL_RANK=-1", "LOCAL_RANK is '-1' in the environment, no number: unset it"),
        ("WORLD_SIZE=2 RANK=0", "has WORLD_SIZE, RANK but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT.* or unset WORLD_SIZE and RANK$"),
        ("MASTER_ADDR=a", "has MASTER_ADDR but not WORLD_SIZE"),
        ("SLURM_STEP_NUM_TASKS=2", "SLURM_STEP_NUM_TASKS is 2: srun or mpirun started several processes"),
        ("OMPI_COMM_WORLD_SIZE=two", "OMPI_COMM_WORLD_SIZE is 'two' in the environment, no number: unset it"),
        ("SLURM_STEP_NUM_TASKS=1 PMI_SIZE=1", None),
        ("WORLD_SIZE=1 RANK=0 MASTER_ADDR=a MASTER_PORT=1", None),  # of a Kubeflow PyTorchJob of one replica
        ("PMI_SIZE=2 WORLD_SIZE=1", "PMI_SIZE is 2"),
        ("SLURM_STEP_NUM_TASKS=2 WORLD_SIZE=2 RANK=0 MASTER_ADDR=a MASTER_PORT=1 LOCAL_RANK=0", None),
    ],
)
def test_what_the_environment_says_of_other_processes(environment: str, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("="))
    with pytest.raises(UsageError, match=told) if told else nullcontext():
        check_launch()


@pytest.mark.parametrize(
    ("backend", "error", "stays"), [("nccl", ValueError, True), ("nccl", UserError, False), ("gloo", ValueError, False)]
)
def test_a_rank_that_fails_alone_does_not_wait_for_the_others(
    backend: str, error: type[Exception], stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would in NCCL's `destroy_process_group`; NCCL itself needs GPUs."""

    def start(config: Config) -> SimpleNamespace:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return SimpleNamespace(free_memory=lambda: None)

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    with pytest.raises(error, match="alone"), launch.started(Config()):
        raise error("alone")
    assert dist.is_initialized() == stays
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_gpu_of_a_mac_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert launch.start(launch.resolve_precision(Config())).device.type == "cpu"


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1".split():
        monkeypatch.setenv(*setting.split("="))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 ranks on this host but 1 GPUs"):
        check_launch()


def test_a_gpu_that_this_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn, "LSTM", fail)
    monkeypatch.setattr("lstmlm.runtime.hardware.device_kind", lambda device: "Tesla V100")
    with pytest.raises(UserError, match=r"^PyTorch \S+ cannot compute on Tesla V100: CUDA error: no kernel [^\n]*DEVICES=-1 "):
        launch._check_device("fp32", torch.device("cuda"))
