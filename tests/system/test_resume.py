"""I4 through the real launcher: killed and resumed, on the same number of ranks bit for bit, on another up to rounding."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import assert_same_run, skip_without_bf16
from tests.system.launcher import FAULTY, launch, pause_at, start, wait_for_step
from tests.system.test_ranks import PER_STEP, assert_same_up_to_rounding

LONG = ("--train.epochs=4", "--train.save_every=10", "--train.eval_every=40")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the launcher and every rank, as a power cut; the ranks have sessions of their own."""
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


# Ranks of the starts, steps at which all but the last are killed, overrides.
CASES: dict[str, tuple[list[int], list[int], list[str]]] = {"2 then 2 ranks": ([2, 2], [37], []), "2 then 1 rank": ([2, 1], [37], [])}
SLOW_CASES: dict[str, tuple[list[int], list[int], list[str]]] = {
    "3 ranks, killed twice": ([3, 3, 3], [17, 37], []),
    "2 ranks, accumulating, killed twice": ([2, 2, 2], [7, 15], ["--train.accumulate=3", "--train.save_every=2"]),
    "2 ranks, bf16": ([2, 2], [37], ["--train.precision=bf16"]),
    "2 then 3 ranks": ([2, 3], [37], []),
    "1 then 4 ranks": ([1, 4], [37], []),
    "3 then 2 then 1 ranks": ([3, 2, 1], [17, 37], []),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)])
def test_killed_and_resumed(case: str, small: Callable[..., list[str]], tmp_path: Path) -> None:
    starts, kills, overrides = (CASES | SLOW_CASES)[case]
    if "--train.precision=bf16" in overrides:
        skip_without_bf16()
    whole = launch(starts[0], small(*LONG, *overrides, run="whole"))
    assert whole.returncode == 0, whole.stderr
    arguments = small(*LONG, *overrides, "--train.resume=true", run="cut")
    for ranks, step in zip(starts[:-1], kills, strict=True):
        process = start(ranks, arguments, FAULTY, **pause_at(step, ranks - 1))
        wait_for_step(tmp_path / "cut", step, process)
        kill_all(process)
    resumed = launch(starts[-1], arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    if len(set(starts)) == 1:
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
    else:
        assert_same_up_to_rounding(tmp_path / "cut", tmp_path / "whole", PER_STEP | {"train/loss": 2e-5}, weights=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all(number: signal.Signals, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """Rank 1 waits in a step and gets the signal there; both save and leave, and the run goes on as if nothing had been."""
    whole = launch(2, small(*LONG, run="whole"))
    assert whole.returncode == 0, whole.stderr
    arguments = small(*LONG, "--train.resume=true", run="cut")
    process = start(2, arguments, FAULTY, **pause_at(37, rank=1))
    wait_for_step(tmp_path / "cut", 37, process)
    os.kill(children(process.pid)[-1], number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert stderr.count(f"stopped by signal {int(number)}") == 1
    resumed = launch(2, arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "step_00000038" in resumed.stderr, "saved when told (log_every is 1, so each step is an event)"
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
