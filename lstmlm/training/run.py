"""A run: its directory, its cursor, and what happens at its events."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from lstmlm import generation
from lstmlm.config import Config
from lstmlm.console import Progress, UserError, perplexity, print_line
from lstmlm.data.corpus import Corpus, SplitFacts
from lstmlm.data.sources import dataset_name
from lstmlm.evaluation.perplexity import (
    SEGMENT_TOKENS,
    Evaluation,
    bits_per_character,
    evaluate_stream,
    evaluate_whole,
    exponential,
    word_ppl,
)
from lstmlm.files import read_file, replace_file, sweep
from lstmlm.model.dropout import MASKS
from lstmlm.model.pretrained import (
    CARD,
    VOCABULARY,
    WEIGHTS,
    load,
    model_card,
    model_name,
    save_pretrained,
    trained_on,
)
from lstmlm.runtime.distributed import fail_together, main_tensors, main_value
from lstmlm.runtime.hardware import device_kind, memory_in_use, package_versions
from lstmlm.training import banner, checkpoint, resume
from lstmlm.training.checkpoint import Saved
from lstmlm.training.cursor import Cursor, Interval, Seconds
from lstmlm.training.profiling import profiled
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.step import TrainStep
from lstmlm.training.tracking import Tracking, git_state

SAMPLES, SAMPLE_LENGTH = 3, 40  # sample texts logged at each validation


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run_dir: Where everything is; of a dry run, where it would be.
        signal: Number of the signal that stopped it, or 0.
        summary: The content of `summary.json`; of a dry run, what it measured; None where the run was stopped before its end.
    """

    run_dir: Path
    signal: int = 0
    summary: dict[str, Any] | None = None


class Events(NamedTuple):
    """What is due after a step."""

    log: bool
    evaluate: bool
    epoch: bool
    save: bool
    end: bool


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

    Attributes:
        config: With `train.run_dir` too.
        finished: How the run ended, where it is finished already; else None.
        cursor: Where the run stands.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.directory = self._choose_directory(config.train.run_dir, config)
        run_dir = config.train.run_dir or str(self.directory.path)
        self.config = dataclasses.replace(config, train=dataclasses.replace(config.train, run_dir=run_dir))
        self.cursor = Cursor()
        self.interval = Interval()
        self.seconds = Seconds()
        self._opened = time.perf_counter()
        self.tracking = Tracking(self.config, accelerator, self.directory)
        self.finished: Outcome | None = None
        self._is_main = accelerator.is_main_process
        self._found: Iterator[tuple[Path, Saved]] = iter(())  # checkpoints to go on from; the main rank's
        self._saved: Saved | None = None  # values of the first of them
        self._profile_step: Callable[[bool], None] = lambda last: None
        self._profiling = ExitStack()
        self._open = ExitStack()  # the lock and the progress bar

    def __enter__(self) -> "Run":
        summary = None
        with ExitStack() as opening:
            with fail_together(self.accelerator):
                if self._is_main:
                    opening.enter_context(self.directory.held())
                    if self.config.train.resume:
                        self._find_checkpoints()
                        summary = self._summary_if_finished()
                    else:
                        self.directory.refuse_to_overwrite()
            summary, self._saved = main_value(self.accelerator, (summary, self._saved))
            if summary is not None:
                self.finished = Outcome(self.directory.path, summary=summary)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def _choose_directory(self, run_dir: str | None, config: Config) -> RunDirectory:
        """The directory that is named, or else a new one that the main rank makes."""
        if run_dir is not None:
            return RunDirectory(run_dir)
        new = None
        with fail_together(self.accelerator):
            if self.accelerator.is_main_process:
                new = RunDirectory.new(config)
        path = main_value(self.accelerator, new and new.path)
        return new or RunDirectory(path)

    @property
    def origin(self) -> str | Path | None:
        """The saved model that the run begins with; of a run that goes on, the vocabulary in its own model."""
        init_from, own = self.config.train.init_from, self.directory.model / VOCABULARY
        return own if init_from and self._saved and own.exists() else init_from

    def begin(self, corpus: Corpus, train_step: TrainStep) -> None:
        """Take over the checkpoint where there is one to go on from, and start the trackers.

        Args:
            corpus: Of the run.
            train_step: Of the run; its total_steps say where the run ends.

        Raises:
            UserError: The data are not the checkpoint's, or a tracker cannot start.
        """
        self.corpus, self.train_step = corpus, train_step
        self._open.callback(train_step.close)
        if self._saved is not None:
            self._resume()
        elif self.origin is not None:
            self.cursor.owes_validation = True  # what it is worth as it comes; it is the best model until a better one
        self._open.callback(self.tracking.finish, 1)  # where neither the run's end nor a stop has: it failed
        if self._is_main:
            for line in banner.opening(self.config, corpus, train_step, self.accelerator):
                print_line(line)
        self.tracking.start(self._facts())
        with fail_together(self.accelerator):
            if self._is_main:
                self.directory.summary.unlink(missing_ok=True)
                self.directory.write_config(self.config)
                self.directory.checkpoints.mkdir(exist_ok=True)  # where it is gone later, checkpoints are lost
        self.progress = Progress(self._is_main, train_step.total_steps, train_step.steps_per_epoch, self.cursor.step)
        self._open.callback(self.progress.close)
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
            end=end,
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
            UserError: A loss was not finite.
        """
        try:
            results = self.train_step.read()
        except UserError as error:
            self.tracking.alert("the loss is not finite", str(error))
            raise
        for result in results:
            self.interval.nll += result.nll
            self.interval.targets += result.num_targets
            if result.grad_norm is not None:
                self.interval.grad_norm += result.grad_norm
                self.interval.updates += 1
        passed = time.perf_counter() - self._clock
        self.interval.seconds += passed
        self.seconds.training += passed

    def log(self) -> None:
        """One line of training metrics."""
        done, self.interval = self.interval, Interval()
        loss = done.nll / done.targets
        tokens_per_second = done.targets / done.seconds
        self._log(
            {
                "train/loss": loss,
                "train/ppl": exponential(loss),
                "train/grad_norm": done.grad_norm / max(1, done.updates),
                "train/lr": self.train_step.learning_rate(self.cursor.step - 1),
                "train/tokens_per_second": tokens_per_second,
                "time/evaluation": self.seconds.evaluation,
                "time/saving": self.seconds.saving,
                "time/waiting": self.seconds.tracking / self._total_seconds,
                **{f"memory/{name}": used for name, used in memory_in_use(self.accelerator.device).items()},
            }
        )
        self.progress.show(self.cursor.step, loss, exponential(loss), tokens_per_second)

    def validate(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Measure validation perplexity, and export the model where it is the best so far; with an average of the weights, of that.

        A validation that a stop cuts short is repeated first when the run is resumed.

        Raises:
            UserError: The loss is not finite.
        """
        with self.train_step.averaged():
            try:
                result = self._evaluate("validation", self.config.train.eval_columns, interrupted)
            except InterruptedError:
                self.cursor.owes_validation = True
                return
            self._log({"valid/loss": result.loss, "valid/ppl": result.ppl})
            best = self.cursor.take(result.ppl, self.config.optim)
            self.train_step.rate_cuts = self.cursor.rate_cuts
            averages = self.train_step.validated(result.loss)
            mark = ", the best so far" if best else ""
            self.progress.line(
                f"epoch {self._epoch}, step {self.cursor.step}: validation ppl {perplexity(result.ppl)} ({result.columns} columns){mark}"
            )
            if averages:
                self.progress.line("validation was better before: the average of the weights begins here")
            if best:
                self._export()
                with self._timed("tracking"):
                    self.tracking.model(self.directory.model, self.cursor.step, result.ppl)
            with fail_together(self.accelerator), self._timed("tracking"):
                if self._is_main:
                    self.tracking.samples(self._position, self._samples())

    def save(self) -> None:
        """Publish a checkpoint of this moment."""
        self.seconds.total = self._total_seconds
        with self._timed("saving"), fail_together(self.accelerator):
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
            with self.train_step.averaged():
                self._export()
        self.progress.close()
        self.tracking.finish(128 + signal)
        self.progress.line(
            f"stopped by signal {signal} after step {self.cursor.step}; model in {self.directory.model}; "
            f"go on with: {banner.resume_command(self.directory.path)}"
        )
        return Outcome(self.directory.path, signal=signal)

    def leave_alone(self, finished: Outcome) -> Outcome:
        """Leave a run that has nothing left to do as it is."""
        if self._is_main:
            print_line(f"{self.directory.path} is finished already")
        return finished

    def finish(self) -> Outcome:
        """Score the best model at one column and mark the run as finished."""
        self._profiling.close()  # of a run that ended before its last step
        # After the last checkpoint, so that a run that grows from it does not see them.
        if self.interval.targets:
            self.log()
        if self.cursor.validated < self.cursor.step:
            with fail_together(self.accelerator):
                if (
                    self._is_main and self.cursor.best is not None
                ):  # a run that grows has the model of its own validations again
                    replace_file(self.directory.due_model, read_file(self.directory.model / WEIGHTS))
            self.validate()
        if self.cursor.best is None:
            with self.train_step.averaged():
                self._export()
        with fail_together(self.accelerator):
            best = load(self.directory.model, device="cpu").model.weights() if self._is_main else None
        self.train_step.model.load_weights(main_tensors(self.accelerator, best))
        self.progress.line("scoring the validation and the test split at one column")
        valid, test = self._evaluate_whole("validation", "test")
        self._log(
            {
                "final/valid_loss": valid.loss,
                "final/valid_ppl": valid.ppl,
                "test/loss": test.loss,
                "test/ppl": test.ppl,
            }
        )
        self.seconds.total = self._total_seconds
        summary = {
            **asdict(self.cursor),
            "valid": _figures(valid, self.corpus.facts["validation"]),
            "test": _figures(test, self.corpus.facts["test"]),
            "seconds": asdict(self.seconds),
            "parameters": self._parameters,
            "precision": self.config.train.precision,
            "ranks": self.accelerator.num_processes,
            "device": str(self.accelerator.device.type),
            "versions": package_versions(),
        }
        figures = {"validation": summary["valid"], "test": summary["test"]}
        with fail_together(self.accelerator):
            if self._is_main:
                replace_file(self.directory.model / CARD, self._card(figures).encode())
                self.directory.write_summary(summary)
        self.progress.close()
        self.tracking.finish(0)
        if self._is_main:
            for line in banner.closing(self.config, summary, self.train_step.steps_per_epoch, self.directory.path):
                print_line(line)
        return Outcome(self.directory.path, summary=summary)

    def _find_checkpoints(self) -> None:
        """Find the checkpoints to go on from; none where the run starts afresh. The main rank calls it."""
        sweep(self.directory.path)
        sweep(self.directory.model)
        checkpoint.sweep(self.directory.checkpoints)
        found = resume.candidates(self.config, self.directory)
        first = next(found, None)
        if first is not None:
            self._found, self._saved = chain([first], found), first[1]
            return
        self.directory.metrics.unlink(missing_ok=True)
        self.directory.samples.unlink(missing_ok=True)
        print_line(f"no checkpoint in {self.directory.path} yet: starting afresh")

    def _summary_if_finished(self) -> dict[str, Any] | None:
        """The final figures of a run that has nothing left to do; None where it has, or where it has grown since."""
        if self._saved is None:
            return None
        try:
            return self.directory.read_summary() if self._saved.cursor.ended(self.config.train) else None
        except UserError as error:
            print_line(f"{error}; scoring the model again")
            return None

    def _resume(self) -> None:
        """Take over the checkpoint; every rank gets its values and its tensors from the main rank."""
        saved = tensors = None
        with fail_together(self.accelerator):
            if self._is_main:
                layout, table = self.train_step.layout(), self.train_step.table
                saved, tensors = resume.load_newest_that_fits(self._found, self.corpus.fingerprint, layout, table)
        saved = main_value(self.accelerator, saved)
        self.train_step.load_state_dict(main_tensors(self.accelerator, tensors), asdict(saved))
        self.cursor, self.interval, self.seconds = saved.cursor, saved.interval, saved.seconds
        self.train_step.rate_cuts = self.cursor.rate_cuts
        self._opened -= self.seconds.total
        with fail_together(self.accelerator):
            if self._is_main and self.directory.due_model.exists():
                self.directory.due_model.replace(self.directory.model / WEIGHTS)
            self.tracking.load_state_dict(saved.tracking)

    def _facts(self) -> dict[str, Any]:
        config = self.config.to_dict()
        config["data"] |= self._trained_on
        return {
            **config,
            "ranks": self.accelerator.num_processes,
            "device": device_kind(self.accelerator.device),
            "parameters": self._parameters,
            "vocab_size": len(self.corpus.vocabulary),
            "data_fingerprint": self.corpus.fingerprint,
            **git_state(),
            "versions": package_versions(),
        }

    @property
    def _trained_on(self) -> dict[str, Any]:
        """The data by its name: its place on this machine stays in `config.yaml`."""
        return trained_on(self.config.data) | {"dataset": dataset_name(self.config.data.dataset)}

    @property
    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.train_step.model.parameters())

    @property
    def _epoch(self) -> int:
        """Number of the epoch that the last step belongs to, from 1."""
        return self.cursor.epoch + (self.cursor.row > 0)

    @property
    def _position(self) -> dict[str, int]:
        return {"step": self.cursor.step, "epoch": self._epoch, "tokens": self.cursor.tokens}

    @property
    def _total_seconds(self) -> float:
        """Wall time of all starts up to now."""
        return time.perf_counter() - self._opened

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        """Add the time of a block to that of an activity, a field of `Seconds`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self.seconds, activity, getattr(self.seconds, activity) + time.perf_counter() - begin)

    def _log(self, metrics: dict[str, float]) -> None:
        with fail_together(self.accelerator), self._timed("tracking"):
            self.tracking.metrics({**self._position, "seconds": self._total_seconds, **metrics})

    def _evaluate(self, split: str, columns: int, interrupted: Callable[[], bool]) -> Evaluation:
        stream = self.corpus.splits[split]
        scored = SEGMENT_TOKENS * self.accelerator.num_processes

        def between_segments() -> bool:
            tick(scored)
            return interrupted()

        with self._timed("evaluation"), self.progress.scoring(f"scoring {split}", len(stream) - 1) as tick:
            result = evaluate_stream(
                self.train_step.model, stream, columns, self.accelerator, interrupted=between_segments
            )
        self._refuse_unless_finite(split, result)
        return result

    def _evaluate_whole(self, *splits: str) -> list[Evaluation]:
        streams = [self.corpus.splits[split] for split in splits]
        targets = sum(len(stream) - 1 for stream in streams)
        with self._timed("evaluation"), self.progress.scoring(f"scoring {' and '.join(splits)}", targets) as tick:
            results = evaluate_whole(self.train_step.model, streams, self.accelerator, tick)
        for split, result in zip(splits, results, strict=True):
            self._refuse_unless_finite(split, result)
        return results

    def _refuse_unless_finite(self, split: str, result: Evaluation) -> None:
        if not math.isfinite(result.loss):
            message = (
                f"the {split} loss is not finite after step {self.cursor.step} (nll {result.nll}): no model and no checkpoint was "
                "written since; start again in a new train.run_dir with a lower optim.lr"
            )
            self.tracking.alert("the loss is not finite", message)
            raise UserError(message)

    def _samples(self) -> list[str]:
        vocabulary = self.corpus.vocabulary
        samples = generation.sample(self.train_step.model, vocabulary, [vocabulary.eos], SAMPLES, SAMPLE_LENGTH, seed=0)
        return [vocabulary.decode(ids) for ids in samples]

    def _card(self, figures: dict[str, dict[str, Any]] | None = None) -> str:
        init_from, notes = self.config.train.init_from, ""
        if init_from:
            notes = f"Training began with the weights and the vocabulary of the model `{model_name(init_from)}`.\n"
        return model_card(self.train_step.model, self.corpus.vocabulary, self._trained_on, figures, notes=notes)

    def _export(self) -> None:
        """Write `model/`, all that evaluation and generation need."""
        # One entry: the order of several in the file's header is not fixed.
        metadata = {"exported": json.dumps({"step": self.cursor.step, "valid_ppl": self.cursor.best})}
        with self._timed("saving"), fail_together(self.accelerator):
            if self._is_main:
                save_pretrained(
                    self.directory.model,
                    self.train_step.model,
                    self.corpus.vocabulary,
                    self._trained_on,
                    metadata,
                    card=self._card(),
                    fingerprints=self.corpus.fingerprints,
                )


def _figures(result: Evaluation, facts: SplitFacts) -> dict[str, float]:
    return {
        "loss": result.loss,
        "ppl": result.ppl,
        "word_ppl": word_ppl(result, facts.words),
        "bpc": bits_per_character(result, facts.characters),
        "targets": result.targets,
        "columns": result.columns,
    }
