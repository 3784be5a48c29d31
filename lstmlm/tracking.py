"""Where metrics go: `metrics.jsonl` always, W&B and TensorBoard through Accelerate, a bar or lines for the eye."""

import json
import os
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from tqdm import tqdm

from lstmlm.config import Config, UserError, print_line
from lstmlm.distributed import print_main, together
from lstmlm.files import sync_folder


class Tracking:
    """The metrics of one run; every rank has one, only the main rank's writes.

    Args:
        config: Of the run, resolved.
        accelerator: Of the run.
        run_dir: Of the run.
    """

    def __init__(self, config: Config, accelerator: Accelerator, run_dir: Path) -> None:
        self._config = config.tracking
        self._accelerator = accelerator
        self._run_dir = run_dir
        self._path = run_dir / "metrics.jsonl"
        self.run_id: str = uuid.uuid4().hex[:8]
        self.resume_count = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: run id, resume count, and the length of `metrics.jsonl`, flushed to the disk."""
        length = 0
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(self._run_dir)
            length = self._path.stat().st_size
        return {"run_id": self.run_id, "resume_count": self.resume_count, "metrics_bytes": length}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: lines written after it are cut off."""
        self.run_id = values["run_id"]
        self.resume_count = values["resume_count"] + 1
        if self._accelerator.is_main_process and self._path.exists():
            os.truncate(self._path, min(values["metrics_bytes"], self._path.stat().st_size))

    def start(self, facts: dict[str, Any]) -> None:
        """Start the trackers; every rank calls it.

        Args:
            facts: The resolved configuration and what else a reader of the run should know.

        Raises:
            UserError: A tracker is not installed or cannot start.
        """
        if not self._config.trackers:
            return
        for name in self._config.trackers:
            if find_spec(name) is None:
                raise UserError(
                    f"tracker {name} is not installed: pip install {name}, or leave it out of tracking.trackers"
                )
        self._accelerator.log_with = filter_trackers(list(self._config.trackers), self._run_dir)
        # TensorBoard writes to <logging_dir>/<project>
        self._accelerator.project_configuration.logging_dir = str(self._run_dir / "tensorboard")
        with together(self._accelerator):
            try:
                wandb = self._wandb_arguments(facts) if "wandb" in self._config.trackers else {}
                self._accelerator.init_trackers(self._config.project, init_kwargs={"wandb": wandb})
            except Exception as error:  # each tracker raises its own kinds
                raise UserError(
                    f"cannot start the trackers {self._config.trackers}: {' '.join(str(error).split())}"
                ) from None
        if run := self._wandb_run():
            run.define_metric("tokens")
            run.define_metric("*", step_metric="tokens")
            run.define_metric("valid/ppl", step_metric="tokens", summary="min")

    def _wandb_arguments(self, facts: dict[str, Any]) -> dict[str, Any]:
        mode = self._config.mode
        if mode == "auto" and "WANDB_MODE" not in os.environ and self._accelerator.is_main_process:
            import wandb

            # Never a prompt: it would block a cluster job.
            found = wandb.login(prompt=False, verify=False)
            mode = "online" if found else "offline"
            if not found:
                print_main(
                    self._accelerator,
                    f"no W&B key found: logging offline; later: wandb sync {self._run_dir}/wandb/offline-run-*",
                )
        return {
            "id": self.run_id,
            "resume": "allow",
            "name": self._config.run_name or self._run_dir.name,
            "group": self._config.group,
            "tags": self._config.tags,
            "dir": str(self._run_dir),
            "config": facts | {"resume_count": self.resume_count},
            **({"mode": mode} if mode != "auto" else {}),
        }

    @property
    def has_wandb(self) -> bool:
        """Whether this rank has a W&B run, to show sample texts in."""
        return self._wandb_run() is not None

    def _wandb_run(self) -> Any:
        if not self._accelerator.is_main_process:
            return None  # other ranks hold a blank tracker
        trackers = [tracker for tracker in self._accelerator.trackers if tracker.name == "wandb"]
        return trackers[0].tracker if trackers else None

    def log(self, values: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same to the trackers.

        Args:
            values: `step`, `epoch`, `tokens`, and any of the metrics.
        """
        if not self._accelerator.is_main_process:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        for tracker in self._accelerator.trackers:
            # W&B drops steps that go backwards after a resume, so there `tokens` is the axis.
            self._send(tracker, values, None if tracker.name == "wandb" else values["tokens"])

    def log_samples(self, tokens: int, texts: list[str]) -> None:
        """Sample texts as a W&B table; only where `has_wandb`."""
        import wandb

        table = wandb.Table(["tokens", "text"], [[tokens, text] for text in texts])
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":
                self._send(tracker, {"tokens": tokens, "samples": table}, None)

    def _send(self, tracker: Any, values: dict[str, Any], step: int | None) -> None:
        try:
            tracker.log(values, step=step)
        except Exception as error:  # each tracker raises its own kinds, and none is worth the run
            print_main(self._accelerator, f"warning: {tracker.name} did not take the metrics: {error}")


class Progress:
    """Where the run stands, for the eye: a bar on a terminal, else a line per log interval; main rank only."""

    def __init__(self, accelerator: Accelerator, total_steps: int, step: int) -> None:
        self._shown = accelerator.is_main_process
        self._total = total_steps
        on_terminal = self._shown and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True) if on_terminal else None

    def show(self, step: int, epoch: int, loss: float, ppl: float, tokens_per_second: float) -> None:
        """After a log interval."""
        figures = f"loss {loss:.3f}, ppl {ppl:.2f}, {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(figures)
        else:
            self.line(f"epoch {epoch}, step {step}/{self._total}: {figures}")

    def line(self, message: str) -> None:
        """A line that leaves the bar whole."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        elif self._shown:
            print_line(message)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()


def git_commit() -> str | None:
    """Commit of the checkout this package is imported from, or None where it is not one."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
