"""I4 on several ranks: killed, told to stop and resumed, on the same number of ranks bit for bit, on another up to rounding."""

import shutil
import signal
from pathlib import Path

import pytest

from lstmlm import load_config
from tests.helpers import Small, assert_same_run, fresh_train, skip_without_bf16
from tests.system.launcher import FAULTY, launch, pause_at, start
from tests.system.test_ranks import PER_STEP, assert_same_up_to_rounding

LONG = ("--train.epochs=4", "--train.save_every=10", "--train.eval_every=40")
TOLERANCES = PER_STEP | {"train/loss": 2e-5}


def test_a_kill_and_a_signal_to_one_rank_change_nothing(small: Small, tmp_path: Path) -> None:
    """Power fails; then rank 1 gets a signal within a step, and both save and leave. Two ranks go on from there, and so does one."""
    launch(2, small(*LONG, run="whole"))
    arguments = small(*LONG, "--train.resume=true", run="cut")
    process = start(2, arguments, FAULTY, **pause_at(17, rank=1))
    process.wait_for("paused")
    process.kill()
    process = start(2, arguments, FAULTY, **pause_at(37, rank=1))
    process.wait_for("paused")
    process.send_signal(signal.SIGTERM, rank=1)
    stopped = process.wait()
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "step_00000010" in stopped.stderr, "where it went on from"
    assert stopped.stderr.count("stopped by signal 15") == 1
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    assert "step_00000038" in launch(2, arguments), "saved when told (log_every is 1, so each step is an event)"
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    fresh_train(load_config(small(*LONG, "--train.resume=true", run="alone")))
    assert_same_up_to_rounding(tmp_path / "alone", tmp_path / "whole", TOLERANCES, weights=1e-4)


def test_a_signal_to_one_rank_cuts_a_validation_of_all_short(small: Small, tmp_path: Path) -> None:
    """A launcher kills some time after the signal, and then the steps since the last checkpoint would be lost."""
    arguments = small("--train.epochs=2", "--train.resume=true", run="cut")
    process = start(2, arguments, FAULTY, FAULT="pause_validation", FAULT_RANK="1", FAULT_STEP="-1")
    process.wait_for("paused")
    process.send_signal(signal.SIGTERM, rank=1)
    stopped = process.wait()
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "validation ppl" not in stopped.stderr
    assert stopped.stderr.count("stopped by signal 15 after step 15") == 1
    launch(2, arguments)
    launch(2, small("--train.epochs=2", run="whole"))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# Ranks of the starts, steps at which all but the last are killed, overrides.
CASES: dict[str, tuple[list[int], list[int], list[str]]] = {
    "3 ranks, killed twice": ([3, 3, 3], [17, 37], []),
    "2 ranks, accumulating, killed twice": ([2, 2, 2], [7, 15], ["--train.accumulate=3", "--train.save_every=2"]),
    "2 ranks, bf16": ([2, 2], [37], ["--train.precision=bf16"]),
    "2 then 3 ranks": ([2, 3], [37], []),
    "1 then 4 ranks": ([1, 4], [37], []),
    "3 then 2 then 1 ranks": ([3, 2, 1], [17, 37], []),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(case: str, small: Small, tmp_path: Path) -> None:
    starts, kills, overrides = CASES[case]
    if "--train.precision=bf16" in overrides:
        skip_without_bf16()
    launch(starts[0], small(*LONG, *overrides, run="whole"))
    arguments = small(*LONG, *overrides, "--train.resume=true", run="cut")
    for ranks, step in zip(starts[:-1], kills, strict=True):
        process = start(ranks, arguments, FAULTY, **pause_at(step, ranks - 1))
        process.wait_for("paused")
        process.kill()
    assert "going on from" in launch(starts[-1], arguments)
    if len(set(starts)) == 1:
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
    else:
        assert_same_up_to_rounding(tmp_path / "cut", tmp_path / "whole", TOLERANCES, weights=1e-4)
