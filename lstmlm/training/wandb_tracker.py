"""Weights & Biases: how a run is started there, and how its events are shown."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from lstmlm.config import TrackingConfig
from lstmlm.console import one_line, print_line

LOGIN_SECONDS = 5  # how long W&B may take to accept the key; after that the run logs offline
INIT_SECONDS = 30  # how long `online` waits for a run to start; W&B tries twice
FINISH_SECONDS = 120  # how long the end of a run waits for uploads; what is left stays on disk
PREEMPTED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)  # exit codes after which a sweep starts a run again


class WandbTracker:
    """The events of a run as W&B shows them; `tokens` is the axis, so that runs of any batch size compare.

    Args:
        run: The W&B run, started.
        log_model: Whether each best model becomes an artifact.
    """

    name = "wandb"

    def __init__(self, run: Any, log_model: bool) -> None:
        import wandb

        self._run = run
        self._log_model = log_model
        self._samples = wandb.Table(["tokens", "text"], log_mode="INCREMENTAL")
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        run.define_metric("valid/ppl", step_metric="tokens", summary="min,last")

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics. It is logged without a step, since W&B drops steps that go backwards after a resume."""
        self._run.log(values)

    def samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts, as new rows of one table."""
        for text in texts:
            self._samples.add_data(tokens, text)
        self._run.log({"tokens": tokens, "samples": self._samples})

    def model(self, folder: Path, step: int, ppl: float) -> None:
        """The best model so far, as a version of an artifact."""
        if self._log_model:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata={"step": step, "valid_ppl": ppl})
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def alert(self, title: str, text: str) -> None:
        """A message to the people who watch the run."""
        self._run.alert(title, text, level="ERROR")

    def finish(self, status: int) -> None:
        """End the run, which W&B then shows as finished, failed or preempted."""
        if status in PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=status)


def init_arguments(config: TrackingConfig, run_dir: Path, run_id: str, facts: dict[str, Any], is_main: bool) -> dict[str, Any]:
    """Arguments of `wandb.init`: the same run again after a resume, and never a question at the terminal.

    Args:
        config: Of the trackers. Where it is silent, W&B's environment variables hold (WANDB_NAME and others).
        run_dir: Of the run.
        run_id: Of the run, the same over all of its starts.
        facts: What a reader of the run should know.
        is_main: Whether this process is the one that logs.
    """
    import wandb

    mode = config.mode
    if mode == "auto" and "WANDB_MODE" not in os.environ and is_main:
        problem = _problem_online()
        mode = "offline" if problem else "online"
        if problem:
            print_line(f"{problem}: logging offline; later: wandb sync {run_dir}/wandb/offline-run-*")
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
