"""What all trackers together cost: runs with them and runs without, in turns, by `python scripts/benchmark_trackers.py`.

What stands after the options goes to `scripts/train.py`, such as `--data.dataset FOLDER`. The trackers log offline. Every run's figures
and their medians are written to `--out`, and printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lstmlm.console import UserError, print_line, print_result, run_script
from lstmlm.files import replace_file
from lstmlm.runtime.hardware import package_versions, processor

SCRIPTS = Path(__file__).parent
TRACKERS = {"none": "[]", "all": "[wandb, tensorboard, trackio]"}


def run(name: str, steps: int, arguments: list[str]) -> dict[str, float]:
    """One run in a process of its own: its speed in steps, and its speed where the time spent waiting for trackers counts too."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(SCRIPTS / "train.py"),
            "--config",
            str(SCRIPTS.parent / "configs/wikitext2.yaml"),
        ]
        command += [f"--train.max_steps={steps}", "--train.eval_columns=50", f"--tracking.trackers={TRACKERS[name]}"]
        command += [*arguments, f"--train.run_dir={folder}/run"]
        offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": f"{folder}/trackio"}
        result = subprocess.run(command, env={**os.environ, **offline}, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise UserError(f"{' '.join(command)} failed: {result.stderr.strip().splitlines()[-1]}")
        summary = json.loads((Path(folder) / "run/summary.json").read_bytes())
    tokens, seconds = summary["tokens"], summary["seconds"]
    return {
        "tokens_per_second": tokens / seconds["training"],
        "tokens_per_second_with_waiting": tokens / (seconds["training"] + seconds["tracking"]),
        "seconds_tracking": seconds["tracking"],
    }


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=600, help="of each run")
    parser.add_argument(
        "--out", type=Path, default=Path("results/tracker-overhead/result.json"), help="the file to write"
    )
    options, rest = parser.parse_known_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in TRACKERS}
    for turn in range(options.turns):
        for name in list(TRACKERS) if turn % 2 == 0 else list(reversed(TRACKERS)):
            runs[name].append(run(name, options.steps, rest))
            print_line(f"turn {turn + 1}, trackers {TRACKERS[name]}: {runs[name][-1]}")
    medians = {
        name: {key: statistics.median(figures[key] for figures in all_runs) for key in all_runs[0]}
        for name, all_runs in runs.items()
    }
    cost = {
        key: 1 - medians["all"][key] / medians["none"][key]
        for key in ("tokens_per_second", "tokens_per_second_with_waiting")
    }
    told = {
        "processor": processor(),
        "versions": package_versions(),
        "trackers": TRACKERS,
        "steps": options.steps,
        "runs": runs,
        "medians": medians,
        "cost": cost,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.out, json.dumps(told, indent=2).encode() + b"\n")
    print_result(json.dumps({"medians": medians, "cost": cost}))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
