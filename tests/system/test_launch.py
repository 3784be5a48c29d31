"""Launches that must work on a CPU box, launches that must be refused, and what happens when one rank fails."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import DistributedType

from lstmlm import load_config, train
from lstmlm.console import UsageError
from lstmlm.data.corpus import load_corpus
from lstmlm.evaluation.perplexity import evaluate_stream
from lstmlm.model.pretrained import load
from lstmlm.runtime.launch import _check_cuda_graph, _check_device
from lstmlm.training import checkpoint
from tests.helpers import Small, metrics
from tests.processes import SECONDS, Processes
from tests.system.launcher import FAULTY, ROOT, TRAIN, error_lines, free_port, launch, pause_at, ranks, refused, start

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def run(command: list[str], **environment: str) -> CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=SECONDS)


def test_every_launch_config_is_what_its_header_says() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    paths = [ROOT / "accelerate_config.yaml", *sorted((ROOT / "configs/accelerate").glob("*.yaml"))]
    for path in paths:
        header, content = path.read_text(), yaml.safe_load(path.read_text())
        assert str(path.relative_to(ROOT)) in "\n".join(header.splitlines()[:3]), "the header gives the command"
        parsed = ClusterConfig.from_yaml_file(str(path))
        assert parsed.mixed_precision in ("no", "bf16")
        assert content["num_processes"] == 1 or content["distributed_type"] == "MULTI_GPU"


def test_multi_cpu_starts_one_process_and_is_refused(small: Small, tmp_path: Path) -> None:
    config = tmp_path / "multi_cpu.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    result = run([*LAUNCH, "--config_file", str(config), TRAIN, *small()])
    assert result.returncode != 0
    refused(result.stderr, "the environment has MASTER_ADDR, MASTER_PORT but not WORLD_SIZE", tmp_path)


@pytest.mark.parametrize(
    ("environment", "arguments", "named"),
    [
        ({"ACCELERATE_TORCH_DEVICE": "cuda"}, [], "ACCELERATE_TORCH_DEVICE is cuda, but PyTorch finds no such GPU"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, [], "ACCELERATE_TORCH_DEVICE is meta, but training is for CPUs and CUDA GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [], "CUDA_VISIBLE_DEVICES is 0,1, but PyTorch finds no GPU: see what nvidia-smi says"),
        ({}, ["--train.precision=fp16"], "fp16 needs a GPU"),
        ({}, ["--train.precision=tf32"], "tf32 needs an NVIDIA GPU"),
        ({}, ["--train.compress_gradients=true"], "needs several ranks on GPUs"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "precision fp8 is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["--train.precision=fp32"], "make them agree"),
    ],
)
def test_refused_at_the_start(
    environment: dict[str, str], arguments: list[str], named: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CUDA_VISIBLE_DEVICES": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=named):
        train(load_config(small(*arguments)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "kind", "arguments", "named"),
    [
        ("cuda", DistributedType.NO, [], None),
        ("cpu", DistributedType.NO, [], "this is a cpu"),
        ("cuda", DistributedType.MULTI_GPU, [], "a group of 1 rank"),  # torchrun of one: DDP, which can't be recorded
        ("cuda", DistributedType.NO, ["--train.precision=fp16"], "fp16 changes its scale"),
        ("cuda", DistributedType.NO, ["--train.accumulate=2"], "train.accumulate is not 1"),
    ],
)
def test_where_a_cuda_graph_is_refused(device: str, kind: DistributedType, arguments: list[str], named: str | None, small: Small) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device(device), distributed_type=kind, num_processes=1)
    config = load_config(small("--train.cuda_graph=true", *arguments))
    with nullcontext() if named is None else pytest.raises(UsageError, match=named):
        _check_cuda_graph(config, accelerator)


def test_bf16_where_the_cpu_cannot_is_refused(small: Small, tmp_path: Path) -> None:
    """oneDNN is told to use no more than AVX2."""
    stderr = launch(1, small("--train.precision=bf16"), fails=True, ONEDNN_MAX_CPU_ISA="AVX2", CUDA_VISIBLE_DEVICES="")
    refused(stderr, "bf16 needs a GPU, or a CPU that can run an LSTM in bf16", tmp_path)


def test_bf16_without_onednn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for macOS has none, and would compute in bf16 slowly."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.nn.LSTM, "forward", lambda *_: None)
    with pytest.raises(UsageError, match="bf16 needs a GPU, or a CPU that can run an LSTM in bf16"):
        _check_device("bf16", torch.device("cpu"))


def start_two(first: list[str], second: list[str], homes: Sequence[str] = (os.environ["HOME"],) * 2) -> list[CompletedProcess[str]]:
    """Two ranks with different arguments or home folders, until both have ended."""
    different = zip((first, second), ranks(2), homes, strict=True)
    processes = [Processes([TRAIN, *arguments], [own | {"HOME": home}]) for arguments, own, home in different]
    return [process.wait() for process in processes]


def two_different_ranks(first: list[str], second: list[str], homes: Sequence[str] = (os.environ["HOME"],) * 2) -> str:
    results = start_two(first, second, homes)
    assert all(result.returncode != 0 for result in results)
    return "".join(result.stderr for result in results)


def test_only_the_main_rank_touches_the_run_directory(small: Small, tmp_path: Path) -> None:
    """Nor when the run goes on: the ranks have different home folders, as on hosts that share none."""
    homes = [str(tmp_path / host) for host in "ab"]
    for steps in (2, 4):
        arguments = small("--train.run_dir=~/run", f"--train.max_steps={steps}", "--train.resume=true", "--tracking.trackers=[tensorboard]")
        told = start_two(arguments, arguments, homes)
        assert [result.returncode for result in told] == [0, 0], told
    assert "going on from" in told[0].stderr
    assert list((tmp_path / "a/run/tensorboard").rglob("events.*"))
    assert not (tmp_path / "b/run").exists()


def test_ranks_with_different_configurations_are_refused(small: Small, tmp_path: Path) -> None:
    told = "configuration differs between ranks: optim.lr is 0.005 on rank 0 and 0.1 on rank 1"
    refused(two_different_ranks(small(), small("--optim.lr=0.1")), told, tmp_path)


def test_ranks_with_different_data_are_refused(small: Small, text_folder: Path, tmp_path: Path) -> None:
    """The same folder name on two hosts, with other content: HOME differs between the ranks."""
    for host, extra in (("a", ""), ("b", "w1 w2\n")):
        folder = tmp_path / host / "text"
        folder.mkdir(parents=True)
        for path in text_folder.iterdir():
            (folder / path.name).write_text(path.read_text() + extra)
    arguments = small("--data.dataset=~/text")
    refused(two_different_ranks(arguments, arguments, [str(tmp_path / "a"), str(tmp_path / "b")]), "data differs between ranks", tmp_path)


def test_a_second_host_that_never_comes(small: Small, tmp_path: Path) -> None:
    """The two ranks of the first host, as a scheduler starts them, wait as long as they were told to and say so once."""
    first_host = [own | {"LOCAL_WORLD_SIZE": "2"} for own in ranks(4)[:2]]
    result = Processes([TRAIN, *small("--train.timeout_minutes=0.05")], first_host).wait()
    assert result.returncode == 1
    refused(result.stderr, "the ranks did not find each other within 0.05 minutes", tmp_path)


@pytest.mark.parametrize(
    ("kind", "rank", "told"),
    [
        ("exception", "1", "rank 1 failed: ValueError: a fault of this rank alone"),
        ("kill", "1", "rank 0 lost the others"),
        ("nan", "1", "the loss or its gradient is not finite at step 8"),
        ("disk", "0", "No space left on device"),
    ],
)
def test_a_fault_of_one_rank_ends_all(kind: str, rank: str, told: str, small: Small, tmp_path: Path) -> None:
    stderr = launch(2, small(), FAULTY, fails=True, FAULT=kind, FAULT_RANK=rank, FAULT_STEP="7")
    assert any(told in line for line in error_lines(stderr)), stderr
    found = checkpoint.checkpoints(tmp_path / "run/checkpoints")
    assert all(checkpoint.verify(path) for path in found)
    assert len(found) == (0 if kind == "disk" else 1)
    assert not list((tmp_path / "run/checkpoints").glob(".*")), "no partial file"


def test_scoring_at_the_end_may_last_longer_than_the_timeout(small: Small, tmp_path: Path) -> None:
    """Rank 1 scores both splits, for 6 s each, and rank 0 waits; the timeout is 6 s."""
    torch.set_num_threads(1)
    arguments = small("--train.max_steps=3", "--train.timeout_minutes=0.1")
    launch(2, arguments, FAULTY, FAULT="slow_end", FAULT_RANK="1", FAULT_STEP="-1")
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    assert summary["seconds"]["evaluation"] > 10
    model = load(tmp_path / "run").model
    corpus = load_corpus(load_config(arguments).data)
    for split, name in (("validation", "valid"), ("test", "test")):
        assert summary[name]["loss"] == evaluate_stream(model, corpus.splits[split]).loss, "of one rank, to the bit"


def test_data_may_take_longer_than_the_timeout(small: Small, tmp_path: Path) -> None:
    """Rank 1 prepares data for 9 s longer than rank 0, as a slower host does; the timeout is 6 s."""
    arguments = small("--train.max_steps=3", "--train.timeout_minutes=0.1")
    stderr = launch(2, arguments, FAULTY, FAULT="slow_data", FAULT_RANK="1", FAULT_STEP="9")
    assert stderr.count("waiting for 1 of 2 ranks: they still prepare the data") >= 2


def test_a_rank_lost_while_it_prepares_data_ends_the_others(small: Small, tmp_path: Path) -> None:
    """Nobody but the others can find out: it was on a host of its own, whose launcher has ended with it."""
    arguments = small("--train.timeout_minutes=0.15")
    stderr = launch(2, arguments, FAULTY, fails=True, FAULT="kill_data", FAULT_RANK="1", FAULT_STEP="0")
    (line,) = error_lines(stderr)
    assert "rank 0 lost the others" in line
    assert "1 of 2 ranks gave no sign of life for 0.15 minutes" in line


@pytest.mark.parametrize("kind", ["kill_end", "hang_end"])
def test_a_rank_lost_in_the_scoring_at_the_end_ends_the_others(kind: str, small: Small, tmp_path: Path) -> None:
    ranks = start(2, small("--train.max_steps=3", "--train.timeout_minutes=0.1"), FAULTY, FAULT=kind, FAULT_RANK="1", FAULT_STEP="-1")
    ranks.wait_for("rank 0 lost the others")
    ranks.kill()  # the one that hangs
    assert not (tmp_path / "run/summary.json").exists()


def test_after_a_restart_by_the_launcher_the_run_is_the_same(small: Small, tmp_path: Path) -> None:
    """--max_restarts: the group starts again after the fault (which hits the first start only) and resumes."""
    launch(2, small(run="whole"))
    config = str(ROOT / "configs/accelerate/multi_cpu.yaml")
    launcher = [*LAUNCH, "--config_file", config, "--main_process_port", str(free_port()), "--max_restarts", "1"]
    restarting = [*launcher, FAULTY, *small("--train.resume=true")]
    result = run(restarting, FAULT="kill", FAULT_RANK="1", FAULT_STEP="9", FAULT_ONCE="1", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert "going on from" in result.stderr
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_warnings_are_told_once_on_a_host(small: Small, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        (tmp_path / f"raw/{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"raw/{name}.txt").write_text(f"a b c {name}\n" * 50)
    stderr = launch(2, small(f"--data.dataset={tmp_path / 'raw'}", "--train.max_steps=2"))
    assert stderr.count("<unk> never occurs in the training split") == 1


@pytest.mark.parametrize("fault", ["none", "in_forward", "signal"])
def test_process_groups_end_last_and_without_a_wrapper(fault: str, small: Small) -> None:
    """A DDP wrapper that is still there when its group ends hangs one run of some hundreds."""
    settings = {"PARTING": "1", "FAULT": fault, "FAULT_RANK": "1", "FAULT_STEP": "5"}
    stderr = launch(2, small("--train.max_steps=12"), FAULTY, fails=fault != "none", **settings)
    parted = re.findall(r"parting: rank (\d) ends (\w+) with (\d+) wrappers", stderr)
    ended = {rank: [group for r, group, _ in parted if r == rank] for rank in ("0", "1")}
    assert ended == {"0": ["stop", "all"], "1": ["stop", "all"]}, stderr
    assert {wrappers for _, group, wrappers in parted if group == "all"} == {"0"}
    if fault == "signal":
        assert f"stopped by signal {signal.SIGTERM}" in stderr


def test_the_main_rank_finishes_with_its_trackers_before_a_launcher_ends_it(small: Small, tmp_path: Path) -> None:
    """As `accelerate launch` does, with SIGTERM, when the first rank has left."""
    script = tmp_path / "slow.py"
    script.write_text(
        f"import sys, time, os\nsys.argv[0] = {FAULTY!r}\nsys.path[:0] = [{str(ROOT)!r}, {str(Path(FAULTY).parent)!r}]\n"
        "from lstmlm.training import tracking\nfinish = tracking.Tracking.finish\n"
        "def slow(self, status):\n    time.sleep(3 * (os.environ['RANK'] == '0'))\n    finish(self, status)\n"
        "tracking.Tracking.finish = slow\nimport faulty_train\nfrom lstmlm.console import run_script, print_line\n"
        "faulty_train.TrainStep.__call__ = faulty_train.faulty_call if os.environ['RANK'] == '1' else faulty_train.call\n"
        "status = run_script(faulty_train.train)\nprint_line('rank ' + os.environ['RANK'] + ' leaves')\nsys.exit(status)\n"
    )
    process = start(2, small("--train.log_every=1"), str(script), **pause_at(9, rank=1))
    process.wait_for("paused")
    process.send_signal(signal.SIGTERM, rank=1)
    said = process.wait().stderr
    assert said.index("stopped by signal 15") < said.index("rank 1 leaves"), said
