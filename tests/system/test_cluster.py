"""The cluster templates, as far as a machine without a cluster goes: Slurm's commands are stand-ins that start local ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.system.launcher import ROOT, environment, free_port
from tests.system.test_command_line import error_lines, wait_for_step

CLUSTER = ROOT / "scripts" / "cluster"
SCRIPTS = ("single_node.sbatch", "multi_node.sbatch")
LONG = ("--data.batch_size=20", "--train.epochs=20", "--train.save_every=100000", "--train.eval_every=100000")

# The tasks of a step, with what Slurm puts into their environment; the highest status, or 128 + signal.
SRUN = """\
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
places = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % per_node)} for task in range(tasks)]
processes = [subprocess.Popen(command, env=os.environ | place) for place in places]
with open(os.environ["STEP"], "w") as file:
    file.write(" ".join(str(process.pid) for process in processes))
statuses = [process.wait() for process in processes]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""

SCONTROL = """\
case $1 in
    requeue) echo "$2" >> "$REQUEUED" ;;
    show) printf '127.0.0.1\\nno-such-host\\n' ;;
esac
"""


class Slurm(NamedTuple):
    """Stand-ins for Slurm's commands, in a folder in front of PATH, and a job of two tasks.

    Attributes:
        variables: Environment of the batch script.
        step: Where srun writes the process ids of the tasks.
        job: Number of the job.
    """

    variables: dict[str, str]
    step: Path
    job: str

    def command(self, name: str, text: str, interpreter: str) -> None:
        path = Path(self.variables["PATH"].split(os.pathsep)[0]) / name
        path.write_text(f"#!{interpreter}\n{text}")
        path.chmod(0o755)

    def start(self, script: str, arguments: list[str]) -> "subprocess.Popen[str]":
        """What slurmd does with a batch script that was submitted from the repository's root."""
        return subprocess.Popen(
            ["bash", str(CLUSTER / script), *arguments], stderr=subprocess.PIPE, text=True, env=self.variables, cwd=ROOT
        )

    def run(self, script: str, arguments: list[str]) -> tuple[int, str]:
        process = self.start(script, arguments)
        _, stderr = process.communicate(timeout=200)
        return process.returncode, stderr

    @property
    def requeued(self) -> list[str]:
        path = Path(self.variables["REQUEUED"])
        return path.read_text().split() if path.exists() else []

    def signal_tasks(self, number: signal.Signals) -> None:
        """As `--signal` without `B:` does: the tasks get it, srun and the batch script do not."""
        for pid in self.step.read_text().split():
            os.kill(int(pid), number)


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def slurm(tmp_path: Path, script: str) -> Iterator[Slurm]:
    commands = tmp_path / "bin"
    commands.mkdir()
    port = free_port()
    variables = environment(
        PATH=os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        SLURM_JOB_ID=str(1_000_000 + port - 20_000 if port < 30_000 else 1_000_000 + port % 10_000),
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_NTASKS="2",
        SLURM_NTASKS_PER_NODE="2" if script == "single_node.sbatch" else "1",
        SLURM_CPUS_PER_TASK="1",
        RUN_DIR=str(tmp_path / "run"),
        STEP=str(tmp_path / "step"),
        REQUEUED=str(tmp_path / "requeued"),
    )
    slurm = Slurm(variables, tmp_path / "step", variables["SLURM_JOB_ID"])
    slurm.command("srun", SRUN, sys.executable)
    slurm.command("scontrol", SCONTROL, "/bin/sh")
    yield slurm
    if slurm.step.exists():
        for pid in slurm.step.read_text().split():
            if Path(f"/proc/{pid}/cmdline").exists() and b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


def test_the_shell_reads_it(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


def test_shellcheck(script: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck, which is not installed")
    result = subprocess.run(["shellcheck", str(CLUSTER / script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
