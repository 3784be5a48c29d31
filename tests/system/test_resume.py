"""I4 through the real launcher: killed and resumed, on the same number of ranks bit for bit, on another up to rounding."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.launcher import launch, start
from tests.system.test_command_line import wait_for_step
from tests.system.test_ranks import PER_STEP, assert_same_up_to_rounding
from tests.test_training import assert_same_run

LONG = ("--train.epochs=8", "--train.save_every=10", "--train.eval_every=40")


def kill_group(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the launcher and every rank, as a power cut."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "ranks",
    [
        (2, 2),
        pytest.param((3, 3), marks=pytest.mark.slow),
        (2, 1),
        pytest.param((2, 3), marks=pytest.mark.slow),
        pytest.param((1, 4), marks=pytest.mark.slow),
    ],
    ids=lambda ranks: f"{ranks[0]} then {ranks[1]} ranks",
)
def test_killed_and_resumed(ranks: tuple[int, int], small: Callable[..., list[str]], tmp_path: Path) -> None:
    first, second = ranks
    whole = launch(first, small(*LONG, run="whole"))
    assert whole.returncode == 0, whole.stderr
    arguments = small(*LONG, "--train.resume=true", run="cut")
    process = start(first, arguments)
    wait_for_step(tmp_path / "cut", 37, process)
    kill_group(process)
    resumed = launch(second, arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    if first == second:
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
    else:
        assert_same_up_to_rounding(tmp_path / "cut", tmp_path / "whole", PER_STEP | {"train/loss": 2e-5}, weights=1e-4)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all(
    number: signal.Signals, small: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = small("--train.epochs=400", "--train.save_every=100000", "--train.resume=true", run="cut")
    process = start(2, arguments)
    wait_for_step(tmp_path / "cut", 20, process)
    os.kill(children(process.pid)[-1], number)
    _, stderr = process.communicate(timeout=60)
    assert f"stopped by signal {int(number)}" in stderr
    assert stderr.count("stopped by signal") == 1
    assert len(list((tmp_path / "cut/checkpoints").glob("step_*"))) == 1
