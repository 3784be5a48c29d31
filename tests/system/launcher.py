"""Several gloo ranks on this machine's CPU, with the real launcher and without; and waiting for what a run does."""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lstmlm.records import read_json_lines
from tests.helpers import ROOT
from tests.processes import Processes

TRAIN = str(ROOT / "scripts" / "train.py")
FAULTY = str(ROOT / "tests" / "system" / "faulty_train.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline", **extra}


def ranks(count: int, **extra: str) -> list[dict[str, str]]:
    """What a launcher puts into the environment of each rank."""
    if count == 1:
        return [environment(**extra)]
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [environment(**world, RANK=str(rank), LOCAL_RANK=str(rank), **extra) for rank in range(count)]


def start(count: int, arguments: Sequence[str], script: str = TRAIN, **extra: str) -> Processes:
    """Start so many ranks."""
    return Processes([script, *arguments], ranks(count, **extra))


def launch(count: int, arguments: Sequence[str], script: str = TRAIN, fails: bool = False, **extra: str) -> str:
    """Start so many ranks and wait until they have succeeded, or failed; what they said on standard error."""
    result = start(count, arguments, script, **extra).wait()
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr


def pause_at(step: int, rank: int = 0) -> dict[str, str]:
    """Environment for FAULTY that makes a rank say `paused` before step number `step` and wait for a signal."""
    return {"FAULT": "pause", "FAULT_STEP": str(step), "FAULT_RANK": str(rank)}


def error_lines(stderr: str) -> list[str]:
    """The project's own lines."""
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def refused(stderr: str, told: str, folder: Path) -> None:
    """Assert that all ranks said this and nothing else, and that there is no run."""
    (line,) = error_lines(stderr)
    assert told in line
    assert not (folder / "run").exists()


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[Any]") -> None:
    """Until the metrics of that step are there."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_json_lines(run / "metrics.jsonl")):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"never reached step {step}: {process.communicate()[1]}")
