"""What each tracker is told of a run. Accelerate starts them."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from lstmlm.config import TrackingConfig, flatten
from lstmlm.console import one_line, print_line

LOGIN_SECONDS = 5  # how long W&B may take to accept the key; after that the run logs offline
INIT_SECONDS = 30  # how long `online` waits for a run to start; W&B tries twice
FINISH_SECONDS = 120  # how long the end of a run waits for uploads; what is left stays on disk
PREEMPTED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)  # exit codes after which a sweep starts a run again


class Tracker:
    """One of Accelerate's trackers, started, which knows the facts. It shows the metrics over `tokens`, and what a subclass adds."""

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
