"""How ranks part: the process groups end last, when no DDP wrapper is left, whatever ends the run; and no run hangs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, Small
from tests.system.launcher import FAULTY, environment, launch

LOOP = str(Path(__file__).parent / "parting_loop.py")
PAIRS = int(os.environ.get("LSTMLM_PARTINGS", "300"))


@pytest.mark.parametrize("fault", ["none", "in_forward", "signal"])
def test_groups_end_last_and_without_a_wrapper(fault: str, small: Small) -> None:
    settings = {"PARTING": "1", "FAULT": fault, "FAULT_RANK": "1", "FAULT_STEP": "5"}
    stderr = launch(2, small("--train.max_steps=12"), FAULTY, fails=fault != "none", **settings)
    parted = re.findall(r"parting: rank (\d) ends (\w+) with (\d+) wrappers", stderr)
    ended = {rank: [group for r, group, _ in parted if r == rank] for rank in ("0", "1")}
    assert ended == {"0": ["stop", "all"], "1": ["stop", "all"]}, stderr
    assert {wrappers for _, group, wrappers in parted if group == "all"} == {"0"}
    if fault == "signal":
        assert f"stopped by signal {signal.SIGTERM}" in stderr


@pytest.mark.slow
@pytest.mark.timeout(30 * PAIRS + 200)
def test_no_run_of_many_hangs(small: Small, tmp_path: Path) -> None:
    arguments = [sys.executable, LOOP, str(PAIRS), str(tmp_path / "pairs"), *small("--train.max_steps=2")]
    variables = {**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(arguments, capture_output=True, text=True, env=variables)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "pairs").glob("*/summary.json"))) == PAIRS
