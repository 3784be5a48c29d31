"""Starting the real launcher: several gloo ranks on this machine's CPU."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TRAIN = str(ROOT / "scripts" / "train.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(ranks: int, arguments: Sequence[str], *flags: str, script: str = TRAIN) -> list[str]:
    """The command line of a launch with this many ranks; one rank starts without the launcher."""
    if ranks == 1:
        return [sys.executable, script, *arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    return [
        *launcher,
        "--num_processes",
        str(ranks),
        "--main_process_port",
        str(free_port()),
        *flags,
        script,
        *arguments,
    ]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline", **extra}


def launch(ranks: int, arguments: Sequence[str], *flags: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    """Launch and wait."""
    return subprocess.run(
        command(ranks, arguments, *flags), capture_output=True, text=True, env=environment(**extra), timeout=200
    )


def start(ranks: int, arguments: Sequence[str], *flags: str, **extra: str) -> "subprocess.Popen[str]":
    """Launch in a process group of its own."""
    return subprocess.Popen(
        command(ranks, arguments, *flags),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
        start_new_session=True,
    )
