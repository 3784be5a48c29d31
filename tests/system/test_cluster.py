"""The cluster templates, as far as one machine goes: Slurm's commands are stand-ins that start local ranks."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import Small
from tests.processes import SECONDS
from tests.system.launcher import ROOT, environment, free_port, wait_for_step

CLUSTER = ROOT / "scripts" / "cluster"
# Long enough that the signal finds it running
LONG = "--data.batch_size=20 --train.epochs=15 --train.log_every=10 --train.save_every=1000 --train.eval_every=1000".split()

# The tasks of a step with what Slurm puts into their environment; its status is their highest, 128 + signal included.
SRUN = """\
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
os.environ |= {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{tasks // per_node})"}
places = [{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % per_node)} for task in range(tasks)]
processes = [subprocess.Popen(command, env=os.environ | place) for place in places]
with open(os.environ["TASKS"], "w") as file:
    file.write(" ".join(str(process.pid) for process in processes))
statuses = [process.wait() for process in processes]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""

SCONTROL = """\
case $1 in
    requeue) echo "$2" >> "$REQUEUED" ;;
    show) [ "$2" = job ] && echo "PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=$PREEMPTED" || printf '127.0.0.1\\nno-such-host\\n' ;;
esac
"""


class Slurm:
    """A job of two tasks on one node; the stand-ins, and what they write down, are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.script = CLUSTER / "slurm.sbatch"
        self.run_dir = folder / "run"
        self.job = str(free_job())
        self._commands, self._tasks, self._requeued = folder / "bin", folder / "tasks", folder / "requeued"
        self._commands.mkdir()
        self.command("srun", sys.executable, SRUN)
        self.command("scontrol", "/bin/sh", SCONTROL)
        self.variables = environment(
            PATH=os.pathsep.join([str(self._commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            SLURM_JOB_ID=self.job,
            SLURM_JOB_NODELIST="node[1-2]",
            SLURM_JOB_NUM_NODES="1",
            SLURM_NTASKS="2",
            SLURM_NTASKS_PER_NODE="2",
            SLURM_CPUS_PER_TASK="1",
            RUN_DIR=str(self.run_dir),
            TASKS=str(self._tasks),
            REQUEUED=str(self._requeued),
            PREEMPTED="None",
        )
        self._started: list[subprocess.Popen[str]] = []

    def command(self, name: str, interpreter: str, text: str) -> None:
        """Put a command before all others of its name."""
        path = self._commands / name
        path.write_text(f"#!{interpreter}\n{text}")
        path.chmod(0o755)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """What Slurm does with a script that was submitted from the repository's root."""
        command = ["bash", str(self.script), *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self.variables, cwd=ROOT, start_new_session=True)
        self._started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and standard error of the whole job."""
        process = self.start(*arguments)
        _, stderr = process.communicate(timeout=SECONDS)
        return process.returncode, stderr

    def signal_tasks(self, number: signal.Signals) -> None:
        """As `--signal` without `B:` does: the tasks get it, srun and the batch script do not."""
        for pid in self._tasks.read_text().split():
            os.kill(int(pid), number)

    @property
    def requeued(self) -> list[str]:
        """Numbers of the jobs that were put back into the queue, one for each time."""
        return self._requeued.read_text().split() if self._requeued.exists() else []

    def clean_up(self) -> None:
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_job() -> int:
    """Number of a job whose port nobody has."""
    for job in itertools.count(os.getpid()):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + job % 10_000))
            return job
    raise AssertionError


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path)
    yield slurm
    slurm.clean_up()


def test_shellcheck(slurm: Slurm) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck, which is not installed")
    result = subprocess.run(["shellcheck", str(slurm.script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_options_that_stopping_and_resuming_depend_on(slurm: Slurm) -> None:
    """Slurm reads options only above the first command."""
    lines = slurm.script.read_text().splitlines()
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    options = [line.removeprefix("#SBATCH ") for line in lines[: commands[0]] if line.startswith("#SBATCH ")]
    assert {"--requeue", "--signal=USR1@600", "--open-mode=append", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(options)
    assert not any(line.startswith("#SBATCH") for line in lines[commands[0] :])


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("status", [0, 1, 2, 128 + signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGUSR1])
def test_only_what_the_signal_cut_short_is_requeued(status: int, finished: bool, slurm: Slurm) -> None:
    slurm.command("srun", "/bin/sh", f"exit {status}\n")
    if finished:
        slurm.run_dir.mkdir()
        (slurm.run_dir / "summary.json").write_text("{}")
    assert slurm.run() == (status, "")
    assert slurm.requeued == ([slurm.job] if status == 128 + signal.SIGUSR1 and not finished else [])


@pytest.mark.parametrize("status", [0, 1, 128 + signal.SIGTERM])
def test_what_a_preemption_cut_short_is_requeued(status: int, slurm: Slurm) -> None:
    slurm.variables["PREEMPTED"] = "2026-01-01T00:00:00"
    slurm.command("srun", "/bin/sh", f"exit {status}\n")
    assert slurm.run() == (status, "")
    assert slurm.requeued == ([slurm.job] if status == 128 + signal.SIGTERM else [])


def test_the_signal_saves_and_requeues_and_the_next_start_finishes(slurm: Slurm, small: Small) -> None:
    """The first start is on two nodes, the second on one."""
    one_node = {**slurm.variables}
    slurm.variables |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    process = slurm.start(*small(*LONG))
    wait_for_step(slurm.run_dir, 20, process)
    slurm.signal_tasks(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGUSR1, stderr
    assert stderr.count("stopped by signal 10") == 1
    assert len(list((slurm.run_dir / "checkpoints").glob("step_*"))) == 1
    assert not (slurm.run_dir / "summary.json").exists()
    assert slurm.requeued == [slurm.job]
    slurm.variables = one_node
    status, stderr = slurm.run(*small(*LONG))
    assert status == 0, stderr
    assert "going on from" in stderr
    assert json.loads((slurm.run_dir / "summary.json").read_bytes())["ranks"] == 2
    assert slurm.requeued == [slurm.job], "once, not again"


# Fields of Kubeflow Trainer's published TrainJob (v1alpha1, Trainer 2.3) and of the Kubernetes types in it, as far as a job needs them
PUBLISHED = set(
    """apiVersion kind metadata name namespace labels annotations spec runtimeRef trainer image command args env value numNodes
    numProcPerNode resourcesPerNode requests limits runtimePatches manager trainingRuntimeSpec template replicatedJobs containers
    volumeMounts mountPath subPath readOnly volumes persistentVolumeClaim claimName emptyDir medium sizeLimit securityContext fsGroup
    nodeSelector tolerations terminationGracePeriodSeconds cpu memory nvidia.com/gpu""".split()
)


def fields(value: Any) -> set[str]:
    """Names of all fields, at any depth."""
    if isinstance(value, list):
        return set().union(*map(fields, value))
    return set(value).union(*map(fields, value.values())) if isinstance(value, dict) else set()


@pytest.fixture
def train_job() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((CLUSTER / "trainjob.yaml").read_text())
    return job


def test_train_job_has_published_fields_only(train_job: dict[str, Any]) -> None:
    assert (train_job["apiVersion"], train_job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert fields(train_job) - PUBLISHED == set()


def test_train_job_has_room_and_time_to_save(train_job: dict[str, Any]) -> None:
    trainer, (patch,) = train_job["spec"]["trainer"], train_job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert replicated["name"] == container["name"] == "node", "the name of the trainer's job and container in torch-distributed"
    (claim,) = (volume["name"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume)
    assert {"name": claim, "mountPath": "/data"} in container["volumeMounts"]
    kept = [argument.split("=")[0] for argument in trainer["args"] if "=/data/" in argument]
    assert {"--train.run_dir", "--data.cache_dir"} <= {*kept}
    timeout = next(int(entry["value"]) for entry in trainer["env"] if entry["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert timeout < spec["terminationGracePeriodSeconds"]
    resources = trainer["resourcesPerNode"]["limits"]
    assert resources["nvidia.com/gpu"] == trainer["numProcPerNode"]
    assert f"--train.threads={resources['cpu'] // trainer['numProcPerNode']}" in trainer["args"]


def test_train_job_starts_stops_and_goes_on(train_job: dict[str, Any], small: Small, tmp_path: Path) -> None:
    """Its command, with the environment that the controller sets for one pod, and SIGTERM as at the pod's end."""
    trainer = train_job["spec"]["trainer"]
    assert "WORKDIR /opt/lstmlm\nCOPY" in (ROOT / "Dockerfile").read_text()
    command = [
        part.replace("/opt/lstmlm/", f"{ROOT}/").replace("=/data/", f"={tmp_path}/data/")
        for part in [*trainer["command"], *trainer["args"]]
    ]
    command += [part for part in small(*LONG) if not part.startswith(("--train.run_dir", "--data.cache_dir"))]
    run = tmp_path / "data/runs/wikitext2"
    variables = environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PET_NNODES="1",
        PET_NPROC_PER_NODE="2",
        PET_NODE_RANK="0",
        PET_MASTER_ADDR="127.0.0.1",
        PET_MASTER_PORT=str(free_port()),
        **{entry["name"]: entry["value"] for entry in trainer["env"]},
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables, cwd=tmp_path)
    wait_for_step(run, 20, process)
    process.terminate()
    _, stderr = process.communicate(timeout=SECONDS)
    assert stderr.count("stopped by signal 15") == 1
    assert len(list((run / "checkpoints").glob("step_*"))) == 1
    result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "going on from" in result.stderr
    assert json.loads((run / "summary.json").read_bytes())["ranks"] == 2
