"""configs/wandb/sweep.yaml: a trial as the agent of `wandb sweep` starts it, preempted and started again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.helpers import Small
from tests.processes import SECONDS
from tests.system.launcher import ROOT, wait_for_step


def test_a_preempted_trial_goes_on_in_its_own_directory(small: Small, tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # seconds, in each worker

    sweep = yaml.safe_load((ROOT / "configs/wandb/sweep.yaml").read_text())
    chosen = [
        argument
        for argument in small("--train.epochs=15", "--train.save_every=1000", "--tracking.mode=offline")
        if not argument.startswith("--train.run_dir")
    ]
    values = dict(argument.removeprefix("--").split("=", 1) for argument in chosen)
    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    filled["env"] = ["/usr/bin/env"]
    command = [
        word
        for part in create_sweep_command(sweep["command"])
        for word in (filled[part[2:-1]] if part in ("${env}", "${args}") else [part])
    ]
    for folder in ("scripts", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_RUN_ID": "trial1", "PATH": path}
    run = tmp_path / "runs/sweep-trial1"

    def start(words: list[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=(tmp_path / "log").open("ab"))

    with start(command) as trial:
        try:
            wait_for_step(run, 5, trial)
        finally:
            trial.terminate()
        assert trial.wait(SECONDS) == 143, "W&B requeues what was marked as preempted and did not end with 0"
    stopped = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    with start(command) as trial:
        assert trial.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert stopped < 225
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 226))
    assert sweep["metric"]["name"] in lines[-1]
