"""A run: its directory, its cursor, and what happens at its events."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from lstmlm.config import Config
from lstmlm.console import Progress, perplexity, print_line
from lstmlm.data.corpus import Corpus
from lstmlm.model.dropout import MASKS
from lstmlm.runtime.distributed import fail_together, main_tensors, main_value
from lstmlm.runtime.hardware import memory_in_use, package_versions
from lstmlm.training import banner, checkpoint, resume
from lstmlm.training.best_model import BestModel
from lstmlm.training.checkpoint import Saved
from lstmlm.training.cursor import Cursor, Interval, Seconds
from lstmlm.training.profiling import profiled
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.step import NotFiniteError, TrainStep
from lstmlm.training.tracking import Tracking
from lstmlm.training.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run_dir: Path  # where everything is; of a dry run, where it would be
    signal: int = 0  # number of the signal that stopped it, or 0
    summary: dict[str, Any] | None = None  # as `summary.json`; of a dry run, what it measured; None where a signal stopped the run


class Events(NamedTuple):
    """What is due after a step."""

    log: bool
    evaluate: bool
    epoch: bool
    save: bool


class Run:
    """A run on its directory, entered as a context.

    On entering, the directory is locked, and it is known whether the run is finished, before a token is read or a model is
    built. `begin` then takes the data and the step, resumes where that is asked for, and starts the trackers. Every rank has a
    `Run` and calls the same methods at the same steps; only the main rank's touches the directory.

    Args:
        config: With the precision resolved.
        accelerator: Of the run.

    Raises:
        UserError: On entering: the directory holds another run, is in use, or cannot be written.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        with fail_together(accelerator):  # the main rank makes the directory of a run that names none
            main = accelerator.is_main_process
            new = RunDirectory.new(config) if config.train.run_dir is None and main else None
        run_dir = main_value(accelerator, str(new.path) if new else config.train.run_dir)
        self.directory = new or RunDirectory(run_dir)
        self.config = replace(config, train=replace(config.train, run_dir=run_dir))
        self.cursor, self.interval, self.seconds = Cursor(), Interval(), Seconds()
        self._opened = time.perf_counter()
        self.tracking = Tracking(self.config, accelerator, self.directory)
        self.finished: Outcome | None = None  # where the run has nothing left to do
        self._is_main = accelerator.is_main_process
        self._found: Iterator[tuple[Path, Saved]] = iter(())  # checkpoints to go on from; the main rank's
        self._saved: Saved | None = None  # values of the first of them
        self._profile_step: Callable[[bool], None] = lambda last: None
        self._profiling = ExitStack()
        self._open = ExitStack()  # the lock and the progress bar

    def __enter__(self) -> "Run":
        past = resume.Past()
        with ExitStack() as opening:
            with fail_together(self.accelerator):
                if self._is_main:
                    opening.enter_context(self.directory.held())
                    if self.config.train.resume:
                        past = resume.find_past(self.config, self.directory)
                    else:
                        self.directory.refuse_to_overwrite()
            self._found = past.found
            summary, self._saved = main_value(self.accelerator, (past.summary, past.saved))
            if summary is not None:
                self.finished = Outcome(self.directory.path, summary=summary)
                if self._is_main:
                    print_line(f"{self.directory.path} is finished already")
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *traceback: object) -> None:
        if isinstance(error, NotFiniteError):
            self.tracking.alert("the loss is not finite", str(error))
        self._open.close()

    @property
    def origin(self) -> str | Path | None:
        """As `build` takes it."""
        return resume.origin(self.config, self.directory, self._saved)

    def begin(self, corpus: Corpus, train_step: TrainStep) -> None:
        """Take over the checkpoint where there is one to go on from, and start the trackers.

        Raises:
            UserError: The data are not the checkpoint's, or a tracker cannot start.
        """
        self.corpus, self.train_step = corpus, train_step
        self._open.callback(train_step.close)
        self.best_model = BestModel(self.config, self.accelerator, self.directory, corpus, train_step.model)
        if self._saved is not None:
            self._resume()
        elif self.origin is not None:
            self.cursor.owes_validation = True  # what it is worth as it comes; it is the best model until a better one
        self._open.callback(self.tracking.finish, 1)  # where neither the run's end nor a stop has: it failed
        if self._is_main:
            for line in banner.opening(self.config, corpus, train_step, self.accelerator):
                print_line(line)
        facts = banner.facts(self.config, corpus, train_step, self.accelerator)
        facts["data"] |= self.best_model.trained_on
        self.tracking.start(facts)
        with fail_together(self.accelerator):
            if self._is_main:
                self.directory.summary.unlink(missing_ok=True)
                self.directory.write_config(self.config)
                self.directory.checkpoints.mkdir(exist_ok=True)  # where it is gone later, checkpoints are lost
        self.progress = Progress(self._is_main, train_step.total_steps, train_step.steps_per_epoch, self.cursor.step)
        self._open.callback(self.progress.close)
        self.validation = Validation(train_step.model, corpus, self.accelerator, self.progress, self.seconds)
        if self._is_main and self.config.train.profile:
            profiler = profiled(self.accelerator, self.config.train.profile, self.directory.profile)
            self._open.callback(self._profiling.close)
            self._profile_step = self._profiling.enter_context(profiler)
        self.restart_clock()

    def events(self) -> Events:
        """What is due now that the cursor's step is done."""
        train, step = self.config.train, self.cursor.step
        self.progress.step(step)
        end = step == self.train_step.total_steps
        self._profile_step(end)
        if end:
            self._profiling.close()  # what follows is no step
        epoch = self.cursor.row == self.train_step.table.rows
        return Events(
            log=step % train.log_every == 0,
            evaluate=epoch if train.eval_every is None else step % train.eval_every == 0,
            epoch=epoch,
            save=step % train.save_every == 0 or end,
        )

    def ended(self) -> bool:
        """Whether every step is done, or `train.patience` is at its end."""
        return self.cursor.ended(self.config.train)

    def restart_clock(self) -> None:
        """Training time counts from here; the time of events does not."""
        self._clock = time.perf_counter()

    def read_losses(self) -> None:
        """Add up what the steps since the last event measured.

        Raises:
            NotFiniteError: A loss was not finite.
        """
        results = self.train_step.read()
        passed = time.perf_counter() - self._clock
        # Before a validation may cut the learning rate
        self.interval.add(results, self.train_step.learning_rate(self.cursor.step - 1), passed)
        self.seconds.training += passed

    def log(self) -> None:
        """One line of training metrics."""
        metrics, self.interval = self.interval.metrics(), Interval()
        self._log(
            {
                **metrics,
                "time/evaluation": self.seconds.evaluation,
                "time/saving": self.seconds.saving,
                "time/waiting": self.seconds.tracking / self._total_seconds,
                **{f"memory/{name}": used / 2**30 for name, used in memory_in_use(self.accelerator.device).items()},
            }
        )
        figures = (metrics[f"train/{name}"] for name in ("loss", "ppl", "tokens_per_second"))
        self.progress.show(self.cursor.step, *figures)

    def validate(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Measure validation perplexity, and export the model where it is the best so far; with an average of the weights, of that.

        A validation that a stop cuts short is repeated first when the run is resumed.

        Raises:
            NotFiniteError: The loss is not finite.
        """
        with self.train_step.averaged():
            try:
                result = self.validation.score(self.cursor.step, self.config.train.eval_columns, interrupted)
            except InterruptedError:
                self.cursor.owes_validation = True
                return
            self._log({"valid/loss": result.loss, "valid/ppl": result.ppl})
            best = self.cursor.take(result.ppl, self.config.optim)
            self.train_step.rate_cuts = self.cursor.rate_cuts
            averages = self.train_step.validated(result.loss)
            self.progress.line(
                f"epoch {self.cursor.position['epoch']}, step {self.cursor.step}: validation ppl {perplexity(result.ppl)} "
                f"({result.columns} columns){', the best so far' if best else ''}"
            )
            if averages:
                self.progress.line("validation was better before: the average of the weights begins here")
            if best:
                with self.seconds.timed("saving"):
                    self.best_model.write(self.cursor)
                with self.seconds.timed("tracking"):
                    self.tracking.model(self.directory.model, self.cursor.step, result.ppl)
            with fail_together(self.accelerator), self.seconds.timed("tracking"):
                if self._is_main:
                    self.tracking.samples(self.cursor.position, self.best_model.samples())

    def save(self) -> None:
        """Publish a checkpoint of this moment."""
        self.seconds.total = self._total_seconds
        with self.seconds.timed("saving"), fail_together(self.accelerator):
            tensors, values = self.train_step.state_dict()
            if self._is_main:
                values |= {
                    "config": self.config.to_dict(),
                    "data_fingerprint": self.corpus.fingerprint,
                    "cursor": asdict(self.cursor),
                    "interval": asdict(self.interval),
                    "seconds": asdict(self.seconds),
                    "tracking": self.tracking.state_dict(),
                    "versions": package_versions(),
                    "masks": MASKS,
                }
                keep = self.config.train.keep_checkpoints
                checkpoint.publish(self.directory.checkpoints, self.cursor.step, tensors, values, keep)

    def stopped(self, signal: int) -> Outcome:
        """Leave after a signal; the checkpoint is written."""
        if self.cursor.best is None:
            self._write_model()
        self.progress.close()
        self.tracking.finish(128 + signal)
        self.progress.line(
            f"stopped by signal {signal} after step {self.cursor.step}; model in {self.directory.model}; "
            f"go on with: {banner.resume_command(self.directory.path)}"
        )
        return Outcome(self.directory.path, signal=signal)

    def finish(self) -> Outcome:
        """Score the best model at one column and mark the run as finished."""
        self._profiling.close()  # of a run that ended before its last step
        # After the last checkpoint, so that a run that grows from it does not see them.
        if self.interval.targets:
            self.log()
        if self.cursor.validated < self.cursor.step:
            if self.cursor.best is not None:
                self.best_model.keep_for_growth()
            self.validate()
        if self.cursor.best is None:
            self._write_model()
        self.best_model.load()
        self.progress.line("scoring the validation and the test split at one column")
        figures = self.validation.final_figures(self.cursor.step)
        valid, test = figures["validation"], figures["test"]
        self._log({"final/valid_loss": valid["loss"], "final/valid_ppl": valid["ppl"], "test/loss": test["loss"], "test/ppl": test["ppl"]})
        self.seconds.total = self._total_seconds
        summary = {
            **asdict(self.cursor),
            "valid": valid,
            "test": test,
            "seconds": asdict(self.seconds),
            "parameters": self.train_step.model.num_parameters,
            "precision": self.config.train.precision,
            "ranks": self.accelerator.num_processes,
            "device": str(self.accelerator.device.type),
            "versions": package_versions(),
        }
        with fail_together(self.accelerator):
            if self._is_main:
                self.best_model.write_figures(figures)
                self.directory.write_summary(summary)
        self.progress.close()
        self.tracking.finish(0)
        if self._is_main:
            for line in banner.closing(self.config, summary, self.train_step.steps_per_epoch, self.directory.path):
                print_line(line)
        return Outcome(self.directory.path, summary=summary)

    def _resume(self) -> None:
        """Take over the checkpoint; every rank gets its values and its tensors from the main rank."""
        saved = tensors = None
        with fail_together(self.accelerator):
            if self._is_main:
                layout, table = self.train_step.layout(), self.train_step.table
                keep = self.config.train.keep_checkpoints
                saved, tensors = resume.load_newest_that_fits(self._found, self.corpus.fingerprint, layout, table, keep)
        saved = main_value(self.accelerator, saved)
        self.train_step.load_state_dict(main_tensors(self.accelerator, tensors), asdict(saved))
        self.cursor, self.interval, self.seconds = saved.cursor, saved.interval, saved.seconds
        self.train_step.rate_cuts = self.cursor.rate_cuts
        self.interval.learning_rate = self.interval.learning_rate or self.train_step.learning_rate(self.cursor.step - 1)
        self._opened -= self.seconds.total
        with fail_together(self.accelerator):
            if self._is_main:
                self.best_model.bring_back()
            self.tracking.load_state_dict(saved.tracking)

    def _write_model(self) -> None:
        with self.train_step.averaged(), self.seconds.timed("saving"):
            self.best_model.write(self.cursor)

    @property
    def _total_seconds(self) -> float:
        """Wall time of all starts up to now."""
        return time.perf_counter() - self._opened

    def _log(self, metrics: dict[str, float]) -> None:
        with fail_together(self.accelerator), self.seconds.timed("tracking"):
            self.tracking.metrics({**self.cursor.position, "seconds": self._total_seconds, **metrics})
