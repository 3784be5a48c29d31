"""A run: its directory, its cursor, and what happens at its events."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from lstmlm.config import Config
from lstmlm.console import Progress, UserError, perplexity, print_line
from lstmlm.data.corpus import Corpus
from lstmlm.evaluation.perplexity import Evaluation, evaluate_stream
from lstmlm.model.dropout import MASKS
from lstmlm.runtime.distributed import fail_together, main_tensors, main_value
from lstmlm.runtime.hardware import memory_in_use, package_versions
from lstmlm.training import banner, checkpoint, resume
from lstmlm.training.best_model import BestModel
from lstmlm.training.cursor import Cursor, Interval, Seconds
from lstmlm.training.optimizer import learning_rate
from lstmlm.training.profiling import profiled
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.step import NotFiniteError, TrainStep
from lstmlm.training.tracking import Tracking


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
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._is_main = accelerator.is_main_process
        with fail_together(accelerator):  # the main rank makes the directory of a run that names none
            new = RunDirectory.new(config) if config.train.run_dir is None and self._is_main else None
        run_dir = main_value(accelerator, str(new.path) if new else config.train.run_dir)
        self.directory = new or RunDirectory(run_dir)
        self.config = replace(config, train=replace(config.train, run_dir=run_dir))
        self.cursor, self.interval, self.seconds = Cursor(), Interval(), Seconds()
        self._opened = time.perf_counter()
        self.tracking = Tracking(self.config, accelerator, self.directory)
        self.finished: Outcome | None = None  # where the run has nothing left to do
        self._past = resume.Past()  # the checkpoints to go on from are the main rank's alone
        self._newest = 0  # step of the newest checkpoint that this start knows of
        self._profile_step: Callable[[bool], None] = lambda last: None
        self._profiling = ExitStack()
        self._open = ExitStack()  # what leaving undoes: the lock, and what `begin` opens

    def __enter__(self) -> "Run":
        with ExitStack() as opening:
            with fail_together(self.accelerator):
                if self._is_main:
                    opening.enter_context(self.directory.held())
                    if self.config.train.resume:
                        checkpoint.restore(self.directory.checkpoints)
                    self._past = resume.find_past(self.config, self.directory)
            saved, summary = main_value(self.accelerator, (self._past.saved, self._past.summary))
            self._past = self._past._replace(saved=saved, summary=summary)
            self.own_vocabulary = resume.own_vocabulary(self.directory, saved)
            if summary is not None:
                self.finished = Outcome(self.directory.path, summary=summary)
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *traceback: object) -> None:
        if isinstance(error, NotFiniteError):
            self.tracking.tell(lambda tracker: tracker.alert("the loss or its gradient is not finite", str(error)))
        if isinstance(error, KeyboardInterrupt):  # a signal during the final scoring; `console.run_script` gives its number
            self._open.callback(self.tracking.finish, 128 + next(iter(error.args), signal.SIGINT))
        self._open.close()

    def begin(self, corpus: Corpus, train_step: TrainStep) -> None:
        """Take over the checkpoint; where there is none, delete what an earlier start logged. Delete an old summary, write `config.yaml`,
        and start trackers, profiler and clock."""
        self.corpus, self.train_step = corpus, train_step
        self._open.callback(train_step.close)
        self.best_model = BestModel(self.config, self.accelerator, self.directory, corpus, train_step.model)
        if self._past.saved is not None:
            self._resume()
        elif self.config.train.init_from:
            self.cursor.owes_validation = True  # the saved model is validated first, and is the best until a better one comes
        self._open.callback(self.tracking.finish, 1)  # where neither `finish` nor `leave` has: the run failed
        if self._is_main:
            for line in banner.opening(corpus, train_step):
                print_line(line)
        facts = banner.facts(corpus, train_step)
        facts["data"] |= self.best_model.trained_on
        self._code = {name: facts[name] for name in ("git_commit", "git_dirty")}  # as this start has loaded it
        self.tracking.start(facts)
        with fail_together(self.accelerator):
            if self._is_main:
                self.directory.summary.unlink(missing_ok=True)
                if self._past.saved is None:
                    self.directory.metrics.unlink(missing_ok=True)
                    self.directory.samples.unlink(missing_ok=True)
                else:  # only now, when nothing refuses this start any more: until here a finished run's model and logs stay untouched
                    self.best_model.bring_back(self.cursor.best)
                    self.tracking.cut()
                self.directory.write_config(self.config)
                self.directory.checkpoints.mkdir(exist_ok=True)  # where it is gone later, checkpoints are lost
                self._newest = checkpoint.newest_step(self.directory.checkpoints)
        self.progress = Progress(self._is_main, train_step.total_steps, train_step.steps_per_epoch, self.cursor.step)
        self._open.callback(self.progress.close)
        if self._is_main and self.config.train.profile:
            profiler = profiled(self.accelerator, self.config.train.profile, self.directory.profile)
            self._open.callback(self._profiling.close)
            self._profile_step = self._profiling.enter_context(profiler)
        self.restart_clock()

    def events(self) -> Events:
        """Tell the progress bar and the profiler that the cursor's step is done, and return what is due. Called once a step."""
        train, step = self.config.train, self.cursor.step
        self.progress.step(step)
        end = step == self.train_step.total_steps
        self._profile_step(end)
        if end:
            self._profiling.close()  # what follows is no step
        epoch = self.cursor.row == self.train_step.table.rows
        evaluate = epoch if train.eval_every is None else step % train.eval_every == 0
        # At the end a save is due in any case: the loop looks whether the run has ended only where something is due.
        return Events(log=step % train.log_every == 0, evaluate=evaluate, epoch=epoch, save=step % train.save_every == 0 or end)

    def restart_clock(self) -> None:
        """Training time counts from here; the time of events does not."""
        self._clock = time.perf_counter()

    def read_losses(self) -> None:
        """Add up what the steps since the last event measured, all of it finite."""
        results = self.train_step.read()
        passed = time.perf_counter() - self._clock
        # The rate of these steps: a validation that comes next may cut it.
        self.interval.add(results, self._learning_rate, passed)
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
        """Measure validation perplexity, and export the model where it is the best so far. Both use the average of the weights,
        where there is one.

        A validation that a stop cuts short is repeated first when the run is resumed; `interrupted` is asked between segments.
        """
        stream, columns = self.corpus.splits["validation"], self.config.train.eval_columns
        with self.train_step.averaged():
            try:
                with self.seconds.timed("evaluation"), self.progress.scoring("scoring validation", len(stream) - 1) as tick:
                    result = evaluate_stream(self.train_step.model, stream, columns, self.accelerator, scored=tick, interrupted=interrupted)
            except InterruptedError:
                self.cursor.owes_validation = True
                return
            self._refuse_unless_finite("validation", result)
            self._log({"valid/loss": result.loss, "valid/ppl": result.ppl})
            best = self.cursor.note_validation(result.ppl, self.config.optim)
            average_begins = self.train_step.note_validation(result.loss)
            told = f"validation ppl {perplexity(result.ppl)} ({result.columns} columns){', the best so far' if best else ''}"
            self.progress.line(f"epoch {self.cursor.position['epoch']}, step {self.cursor.step}: {told}")
            if average_begins:
                self.cursor.stale = 0  # from here on other weights are validated
                self.progress.line("validation was better before: from here on the average of the weights is validated and exported")
            if best:
                with self.seconds.timed("saving"):
                    self.best_model.write(self.cursor)
                with self.seconds.timed("tracking"):
                    self.tracking.tell(lambda tracker: tracker.model(self.directory.model, self.cursor.step, result.ppl))
            with fail_together(self.accelerator), self.seconds.timed("tracking"):
                if self._is_main:
                    self.tracking.samples(self.cursor.position, self.best_model.samples())

    def save(self) -> None:
        """Publish a checkpoint of this moment."""
        self.seconds.total = self._total_seconds
        with self.seconds.timed("saving"), fail_together(self.accelerator):
            tensors, values = self.train_step.state_dict()
            if self._is_main:
                self.directory.refuse_lost()
                folder = self.directory.checkpoints
                if checkpoint.newest_step(folder) > max(self._newest, self.cursor.step):  # locks may not reach from host to host
                    raise UserError(f"another process saves in {folder} and is further: this one ends")
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
                checkpoint.publish(folder, self.cursor.step, tensors, values, self.config.train.keep_checkpoints)
                self._newest = checkpoint.newest_step(folder)
                self.directory.earlier_best.unlink(missing_ok=True)

    def leave(self, number: int) -> Outcome:
        """Leave after a signal. The caller has saved, unless no step was done since the last checkpoint."""
        self._ensure_model()
        self.progress.close()
        with fail_together(self.accelerator):  # a launcher ends the others when the first one leaves
            self.tracking.finish(128 + number)
        stopped, command = f"stopped by signal {number} after step {self.cursor.step}", banner.resume_command(self.directory.path)
        self.progress.line(f"{stopped}; model in {self.directory.model}; go on with: {command}")
        return Outcome(self.directory.path, signal=number)

    def finish(self) -> Outcome:
        """Score the best model at one column and mark the run as finished."""
        self._profiling.close()  # of a run that ended before its last step
        # The lines from here on stand behind the last checkpoint: a run that goes on from it with more epochs cuts them off.
        if self.interval.targets:
            self.log()
        if self.cursor.validated < self.cursor.step:
            self.validate()
        self._ensure_model()
        self.best_model.load()
        if self.train_step.awaits_average:
            self.progress.line("the average of the weights never began (see optim.average_interval): the model has the weights themselves")
        self.progress.line("scoring the validation and the test split at one column")
        figures = self._final_figures()
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
            **self._code,
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

    def _final_figures(self) -> dict[str, dict[str, float]]:
        """The figures of `summary.json` for the validation and the test split, at one column."""
        streams = {split: self.corpus.splits[split] for split in ("validation", "test")}
        targets = sum(len(stream) - 1 for stream in streams.values())
        with self.seconds.timed("evaluation"), self.progress.scoring("scoring validation and test", targets) as tick:
            results = [evaluate_stream(self.train_step.model, stream, 1, self.accelerator, tick) for stream in streams.values()]
        figures = {}
        for split, result in zip(streams, results, strict=True):
            self._refuse_unless_finite(split, result)
            facts = self.corpus.facts[split]
            result = replace(result, words=facts.words, characters=facts.characters)
            figures[split] = {name: getattr(result, name) for name in ("loss", "ppl", "word_ppl", "bpc", "targets", "columns")}
        return figures

    def _refuse_unless_finite(self, split: str, result: Evaluation) -> None:
        if not math.isfinite(result.loss):
            told = f"the {split} loss is not finite after step {self.cursor.step} (nll {result.nll})"
            raise NotFiniteError(f"{told}: nothing was saved since; start again in a new train.run_dir with a lower optim.lr")

    def _resume(self) -> None:
        """Take over the checkpoint; every rank gets its values and its tensors from the main rank."""
        saved = tensors = None
        with fail_together(self.accelerator):
            if self._is_main:
                keep = self.config.train.keep_checkpoints
                saved, tensors = resume.load_newest_that_fits(self._past.found, self.corpus.fingerprint, self.train_step, keep)
        saved = main_value(self.accelerator, saved)
        self.train_step.load_state_dict(main_tensors(self.accelerator, tensors), {"scaler": saved.scaler})
        self.cursor, self.interval, self.seconds = saved.cursor, saved.interval, saved.seconds
        self.interval.learning_rate = self.interval.learning_rate or self._learning_rate
        self._opened -= self.seconds.total
        self.tracking.load_state_dict(saved.tracking)

    def _ensure_model(self) -> None:
        if self.cursor.best is None:
            with self.train_step.averaged(), self.seconds.timed("saving"):
                self.best_model.write(self.cursor)

    @property
    def _learning_rate(self) -> float:
        """Of the last step; with `data.bptt_jitter` that of a segment of `data.bptt` rows."""
        return learning_rate(self.config.optim, self.cursor.step - 1, self.train_step.total_steps, self.cursor.rate_cuts)

    @property
    def _total_seconds(self) -> float:
        """Wall time of all starts up to now."""
        return time.perf_counter() - self._opened

    def _log(self, metrics: dict[str, float]) -> None:
        with fail_together(self.accelerator), self.seconds.timed("tracking"):
            if self._is_main:
                self.directory.refuse_lost()
            self.tracking.metrics({**self.cursor.position, "seconds": self._total_seconds, **metrics})
