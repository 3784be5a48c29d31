"""Starting the real launcher: several gloo ranks on this machine's CPU; and waiting for what a run does."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import ROOT

TRAIN = str(ROOT / "scripts" / "train.py")
FAULTY = str(ROOT / "tests" / "system" / "faulty_train.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(ranks: int, arguments: Sequence[str], script: str = TRAIN) -> list[str]:
    """The command line of a launch with this many ranks; one rank starts without the launcher."""
    if ranks == 1:
        return [sys.executable, script, *arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    return [*launcher, "--num_processes", str(ranks), "--main_process_port", str(free_port()), script, *arguments]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline", **extra}


def launch(ranks: int, arguments: Sequence[str], **extra: str) -> "subprocess.CompletedProcess[str]":
    """Launch and wait."""
    return subprocess.run(command(ranks, arguments), capture_output=True, text=True, env=environment(**extra), timeout=200)


def start(ranks: int, arguments: Sequence[str], script: str = TRAIN, **extra: str) -> "subprocess.Popen[str]":
    """Launch in a process group of its own."""
    return subprocess.Popen(
        command(ranks, arguments, script), stderr=subprocess.PIPE, text=True, env=environment(**extra), start_new_session=True
    )


def pause_at(step: int, rank: int = 0) -> dict[str, str]:
    """Environment for FAULTY that makes a rank wait for a signal before step number `step`."""
    return {"FAULT": "pause", "FAULT_STEP": str(step), "FAULT_RANK": str(rank)}


def error_lines(stderr: str) -> list[str]:
    """The project's own lines."""
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[Any]") -> None:
    """Until the metrics of that step are there."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines(True) if line[-1] == "\n"):
            time.sleep(0.3)  # the step after it is under way, or paused
            return
        time.sleep(0.02)
    raise AssertionError(f"never reached step {step}: {process.communicate()[1]}")
