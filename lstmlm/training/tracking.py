"""Writes the events of a run where people look: always to two files of JSON lines, and to the trackers that Accelerate starts."""

import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from lstmlm.config import Config, TrackingConfig, flatten
from lstmlm.console import UserError, check, one_line, print_line
from lstmlm.files import sync_folder
from lstmlm.records import append_line, cut_lines
from lstmlm.runtime.distributed import fail_together, main_value
from lstmlm.training.checkpoint import Logged
from lstmlm.training.run_directory import RunDirectory

PROJECT = "lstmlm"  # where neither the configuration nor WANDB_PROJECT names one
LOGIN_SECONDS = 5  # how long W&B may take to accept the key; after that the run logs offline
INIT_SECONDS = 30  # how long `online` waits for a run to start; W&B tries twice
FINISH_SECONDS = 120  # how long the end of a run waits for uploads; what is left stays on disk
PREEMPTED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)  # exit codes after which a sweep starts a run again


class Tracker:
    """One of Accelerate's trackers, started and told the facts. It shows the metrics over `tokens`, and what a subclass adds."""

    def __init__(self, tracker: Any, config: TrackingConfig, facts: dict[str, Any]) -> None:
        self.name: str = tracker.name
        self._tracker = tracker

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics, `tokens` among them."""
        self._tracker.log(values, step=values["tokens"])

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts of the model after `tokens` tokens."""

    def model(self, folder: Path, step: int, ppl: float) -> None:
        """The best model so far was written to `folder`."""

    def alert(self, title: str, text: str) -> None:
        """Something that people should see at once."""

    def finish(self, status: int) -> None:
        """The run ended with this exit status."""
        self._tracker.finish()


class TensorBoardTracker(Tracker):
    """TensorBoard. The configuration is in its HPARAMS tab, sample texts in its TEXT tab."""

    def __init__(self, tracker: Any, config: TrackingConfig, facts: dict[str, Any]) -> None:
        super().__init__(tracker, config, facts)
        sections = {name: values for name, values in facts.items() if isinstance(values, dict)}
        flat = flatten(sections) | {name: value for name, value in facts.items() if name not in sections}
        known = {name: value if isinstance(value, int | float | str) else str(value) for name, value in flat.items()}
        tracker.tracker.add_hparams(known, {}, run_name=".")  # no folder of their own

    def samples(self, tokens: int, texts: list[str]) -> None:
        self._tracker.tracker.add_text("samples", "\n\n".join(texts), tokens)


class TrackioTracker(Tracker):
    """trackio. It keeps the key `step` for its own axis. A run that `trackio.finish` has not ended is ended a second time at exit."""

    def metrics(self, values: dict[str, Any]) -> None:
        super().metrics({key: value for key, value in values.items() if key != "step"})

    def finish(self, status: int) -> None:
        import trackio

        trackio.finish()


class WandbTracker(Tracker):
    """W&B, with `tokens` as the axis, so that runs of any batch size compare. `log_model` makes each best model an artifact."""

    def __init__(self, tracker: Any, config: TrackingConfig, facts: dict[str, Any]) -> None:
        import wandb

        super().__init__(tracker, config, facts)
        self._run = run = tracker.tracker
        self._log_model = config.log_model
        self._samples = wandb.Table(["tokens", "text"], log_mode="INCREMENTAL")
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        run.define_metric("valid/ppl", step_metric="tokens", summary="min,last")

    def metrics(self, values: dict[str, Any]) -> None:
        self._run.log(values)  # without a step: W&B drops steps that go backwards after a resume

    def samples(self, tokens: int, texts: list[str]) -> None:
        for text in texts:
            self._samples.add_data(tokens, text)
        self._run.log({"tokens": tokens, "samples": self._samples})

    def model(self, folder: Path, step: int, ppl: float) -> None:
        if self._log_model:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata={"step": step, "valid_ppl": ppl})
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title, text, level="ERROR")

    def finish(self, status: int) -> None:
        if status in PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=status)
        import wandb

        # The next run of this process has a mode of its own.
        wandb.setup(wandb.Settings(mode=os.environ.get("WANDB_MODE", "online")))  # type: ignore[arg-type]


KINDS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "trackio": TrackioTracker, "tensorboard": TensorBoardTracker}


def wandb_arguments(config: TrackingConfig, run_dir: Path, run_id: str, facts: dict[str, Any], is_main: bool) -> dict[str, Any]:
    """Arguments of `wandb.init`: the same run again after a resume, and never a question at the terminal.

    Where the configuration is silent, W&B's environment variables hold (WANDB_NAME and others).
    """
    import wandb

    mode = config.mode
    if mode == "auto" and "WANDB_MODE" not in os.environ and is_main:
        problem = _problem_online()
        mode = "offline" if problem else "online"
        if problem:
            print_line(f"{problem}: nothing is sent, W&B's files stay in {run_dir}/wandb; later: wandb sync {run_dir}/wandb/offline-run-*")
    if is_main and mode in ("offline", "disabled"):  # told in `init` alone, W&B still sends figures of its own use to its server
        wandb.setup(wandb.Settings(mode=mode))
    settings = wandb.Settings(finish_timeout=FINISH_SECONDS)
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        settings.init_timeout = INIT_SECONDS
    return {
        "id": run_id,
        "resume": "allow",
        "name": config.run_name or os.environ.get("WANDB_NAME") or run_dir.name,
        "group": config.group,
        "job_type": config.job_type,
        "tags": config.tags or None,
        "notes": config.notes,
        "dir": str(run_dir),
        "config": facts,
        "settings": settings,
        **({"mode": mode} if mode != "auto" else {}),
    }


def _problem_online() -> str | None:
    """Why a run cannot log online now, or None where it can; after LOGIN_SECONDS at most."""
    import wandb

    answers: list[str | None] = []

    def log_in() -> None:
        try:
            # Never a prompt: it would block a cluster job.
            answers.append(None if wandb.login(prompt=False, verify=True) else "no W&B key found")
        except (wandb.Error, ValueError) as error:
            answers.append(f"W&B does not answer or refuses the key ({one_line(error)})")

    # W&B's own limits add up: of the name's look-up, the connection and the answer.
    thread = threading.Thread(target=log_in, daemon=True)
    thread.start()
    thread.join(LOGIN_SECONDS)
    return answers[0] if answers else f"W&B does not answer within {LOGIN_SECONDS} s"


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed here."""
    if missing := [name for name in names if find_spec(name) is None]:
        extras = ",".join(missing)
        raise UserError(f"not installed: {', '.join(missing)}; pip install 'lstmlm[{extras}]', or take them out of tracking.trackers")


class WandbError(UserError):
    """W&B did not let the run start."""


class Tracking:
    """Sends the events of a run to the files and the trackers. Every rank has one; only the main rank's writes."""

    def __init__(self, config: Config, accelerator: Accelerator, directory: RunDirectory) -> None:
        self._config = config.tracking
        self._accelerator = accelerator
        self._directory = directory
        self._trackers: list[Tracker] = []
        # An agent of a W&B sweep names the run.
        self.run_id: str = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        self.resume_count = 0
        self._lengths: dict[str, int] = {}  # of the files, at the checkpoint that the run goes on from

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: run id, resume count, and the lengths of the two files, flushed to the disk."""
        lengths = {key: _flushed_length(path) for key, path in self._files.items()}
        return {"run_id": self.run_id, "resume_count": self.resume_count, **lengths}

    def load_state_dict(self, values: Logged) -> None:
        """Go on from where `state_dict` was taken; `cut` does it to the files."""
        self.run_id = os.environ.get("WANDB_RUN_ID") or values.run_id
        self.resume_count = values.resume_count + 1
        self._lengths = {key: getattr(values, key) for key in self._files}

    def cut(self) -> None:
        """Cut off the lines that were written after that. The main rank calls it."""
        for key, path in self._files.items():
            if not cut_lines(path, self._lengths[key]):
                print_line(f"warning: {path} was damaged: lines from before the checkpoint are lost; the run goes on")

    @property
    def _files(self) -> dict[str, Path]:
        """The two files of JSON lines, by the key of their length in a checkpoint."""
        return {"metrics_bytes": self._directory.metrics, "samples_bytes": self._directory.samples}

    def start(self, facts: dict[str, Any]) -> None:
        """Start the trackers, and tell them the facts; every rank calls it."""
        names = list(self._config.trackers)
        with fail_together(self._accelerator):  # one host may lack what the others have
            check_installed(names)
        try:
            self._start(names, facts)
        except WandbError as error:
            may_go_without = main_value(self._accelerator, self._config.mode == "auto" and "WANDB_MODE" not in os.environ)
            if not may_go_without:
                raise
            if self._accelerator.is_main_process:
                print_line(f"warning: {error}; the run goes on without W&B, and metrics.jsonl has everything")
            self._start([name for name in names if name != "wandb"], facts)

    def _start(self, names: Sequence[str], facts: dict[str, Any]) -> None:
        if not names:
            return
        # W&B tells its service of each later import of this: where the service is gone, the import would fail, and the run with it.
        import huggingface_hub  # noqa: F401

        project = self._config.project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._accelerator.log_with = filter_trackers(list(names), self._directory.path)
        # TensorBoard writes to <logging_dir>/<project>
        self._accelerator.project_configuration.logging_dir = str(self._directory.tensorboard)
        is_main = self._accelerator.is_main_process
        facts = facts | {"resume_count": self.resume_count}
        run_dir = self._directory.path
        arguments: dict[str, dict[str, Any]] = {}
        with fail_together(self._accelerator), redirect_stdout(sys.stderr):  # trackio prints there
            inside = "tensorboard" not in names or Path(project).name == project != ".."
            check(inside, f"TensorBoard makes a folder of tracking.project, {project}: give it a name without /")
            try:
                if "wandb" in names:
                    arguments["wandb"] = wandb_arguments(self._config, run_dir, self.run_id, facts, is_main)
                if "trackio" in names:  # which knows a run by its name
                    run_name = f"{self._config.run_name or run_dir.name}-{self.run_id}"
                    arguments["trackio"] = {"name": run_name, "group": self._config.group, "config": facts, "resume": "allow"}
                self._accelerator.init_trackers(project, init_kwargs=arguments)
                if is_main:  # other ranks hold blank trackers
                    self._trackers = [KINDS[tracker.name](tracker, self._config, facts) for tracker in self._accelerator.trackers]
            except Exception as error:  # each tracker raises its own kinds
                kind = WandbError if "wandb" in names and sys.modules["wandb"].run is None else UserError
                for started in self._accelerator.trackers:
                    with suppress(Exception):  # some have not started
                        started.finish()
                self._accelerator.trackers.clear()
                raise kind(f"cannot start the trackers {names}: {one_line(error)}") from None

    def metrics(self, values: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same to the trackers: `step`, `epoch`, `tokens`, and any of the metrics."""
        if self._accelerator.is_main_process:
            append_line(self._directory.metrics, values)
        self.tell(lambda tracker: tracker.metrics(values))

    def samples(self, position: dict[str, int], texts: list[str]) -> None:
        """On the main rank: a line of `samples.jsonl`, and the texts to the trackers; `position` is `step`, `epoch` and `tokens`."""
        append_line(self._directory.samples, {**position, "texts": texts})
        self.tell(lambda tracker: tracker.samples(position["tokens"], texts))

    def finish(self, status: int) -> None:
        """End the trackers' runs, once, with the exit status of the run: 0, 1, or 128 + signal."""
        with redirect_stdout(sys.stderr):
            self.tell(lambda tracker: tracker.finish(status))
        self._trackers = []
        self._accelerator.trackers.clear()

    def tell(self, event: Callable[[Tracker], None]) -> None:
        """Tell each tracker of an event. One that fails is named, and the run goes on."""
        for tracker in self._trackers:
            try:
                event(tracker)
            except Exception as error:  # each tracker raises its own kinds, and none is worth the run
                print_line(f"warning: {tracker.name} failed: {one_line(error)}")


def _flushed_length(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return path.stat().st_size
