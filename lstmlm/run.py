"""A run: its directory, its cursor, and what happens at its events."""

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from accelerate import Accelerator

from lstmlm import checkpoint, distributed, generation
from lstmlm.checkpoint import Cursor
from lstmlm.config import Config, UserError
from lstmlm.corpus import Corpus
from lstmlm.distributed import together
from lstmlm.evaluation import Evaluation, evaluate_stream
from lstmlm.files import replace_file
from lstmlm.model import LSTMLanguageModel
from lstmlm.step import TrainStep
from lstmlm.tracking import Progress, Tracking, git_commit

MASKS = "hash 1"  # which function makes the dropout masks; a checkpoint says with which one its run was made
SAMPLES, SAMPLE_LENGTH = 3, 40  # sample texts logged at each validation

MODEL_CARD = """\
---
library_name: lstmlm
datasets: [{dataset}]
---
An LSTM language model trained with [lstmlm]: {parameters:,} parameters, {vocab_size:,} types, level {level}.

    python scripts/evaluate.py --model <this folder> --split test
    python scripts/generate.py --model <this folder> --prompt "Once upon a time"

The header of `model.safetensors` says at which step it was exported and with which validation perplexity.
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run_dir: Where everything is.
        signal: Number of the signal that stopped it, or 0.
        summary: The content of `summary.json`; None where the run was stopped before its end.
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


@dataclass
class Interval:
    """Sums since the last line of training metrics."""

    nll: float = 0.0
    targets: int = 0
    grad_norm: float = 0.0
    updates: int = 0
    seconds: float = 0.0


class Run:
    """A run on its directory, entered as a context: locked, resumed where that is asked for, trackers started.

    Every rank has one and calls the same methods at the same steps; only the main rank's touches the directory.

    Args:
        config: Resolved, with `train.run_dir`.
        accelerator: Of the run.
        corpus: Of the run.
        step: Of the run; its total_steps say where the run ends.

    Raises:
        UserError: On entering: the directory holds another run, is in use, or cannot be written.
    """

    def __init__(self, config: Config, accelerator: Accelerator, corpus: Corpus, step: TrainStep) -> None:
        assert config.train.run_dir is not None
        self.config = config
        self.accelerator = accelerator
        self.corpus = corpus
        self.step = step
        self.dir = Path(config.train.run_dir)
        self.cursor = Cursor()
        self.interval = Interval()
        self.tracking = Tracking(config, accelerator, self.dir)
        self._is_main = accelerator.is_main_process
        self._open = ExitStack()  # the lock and the progress bar

    def __enter__(self) -> "Run":
        try:
            with together(self.accelerator):
                if self._is_main:
                    self.dir.mkdir(parents=True, exist_ok=True)
                    self._open.enter_context(checkpoint.lock(self.dir))
                    if not self.config.train.resume:
                        self._refuse_to_overwrite()
            self._resume()
            if not self._finished:
                self.tracking.start(self._facts())
                self._write_config()
            self.progress = Progress(self.accelerator, self.step.total_steps, self.cursor.step)
            self._open.callback(self.progress.close)
            self.restart_clock()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def events(self) -> Events:
        """What is due now that the cursor's step is done."""
        train, step = self.config.train, self.cursor.step
        end = step == self.step.total_steps
        epoch = self.cursor.row == self.step.table.rows
        return Events(
            log=step % train.log_every == 0,
            evaluate=epoch if train.eval_every is None else step % train.eval_every == 0,
            epoch=epoch,
            save=step % train.save_every == 0 or end,
            end=end,
        )

    def restart_clock(self) -> None:
        """Training time counts from here; the time of events does not."""
        self._clock = time.perf_counter()

    def read_losses(self) -> None:
        """Add up what the steps since the last event measured.

        Raises:
            UserError: A loss was not finite.
        """
        for result in self.step.read():
            self.interval.nll += result.nll
            self.interval.targets += result.num_targets
            if result.grad_norm is not None:
                self.interval.grad_norm += result.grad_norm
                self.interval.updates += 1
        self.interval.seconds += time.perf_counter() - self._clock

    def log(self) -> None:
        """One line of training metrics."""
        done, self.interval = self.interval, Interval()
        loss = done.nll / done.targets
        tokens_per_second = done.targets / done.seconds
        self._log(
            {
                "train/loss": loss,
                "train/ppl": _exp(loss),
                "train/grad_norm": done.grad_norm / max(1, done.updates),
                "train/lr": self.step.learning_rate(self.cursor.step - 1),
                "train/tokens_per_second": tokens_per_second,
            }
        )
        self.progress.show(self.cursor.step, self._epoch, loss, _exp(loss), tokens_per_second)

    def validate(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Validation perplexity; the best model so far is exported. Interrupted, it is owed, and done first on resuming."""
        try:
            result = self._evaluate("validation", self.config.train.eval_columns, interrupted)
        except InterruptedError:
            self.cursor.owes_validation = True
            return
        self.cursor.owes_validation = False
        self._log({"valid/loss": result.loss, "valid/ppl": result.ppl})
        self.cursor.validated = self.cursor.step
        best = self.cursor.best is None or result.ppl < self.cursor.best
        mark = ", the best so far" if best else ""
        self.progress.line(
            f"epoch {self._epoch}, step {self.cursor.step}: validation ppl {result.ppl:.2f} ({result.columns} columns){mark}"
        )
        if best:
            self.cursor.best = result.ppl
            self._export()
        if self.tracking.has_wandb:
            self.tracking.log_samples(self.cursor.tokens, self._samples())

    def save(self) -> None:
        """Publish a checkpoint of this moment."""
        tensors, values = self.step.state_dict()
        with together(self.accelerator):
            if self._is_main:
                values |= {
                    **self._identity(),
                    "cursor": asdict(self.cursor),
                    "interval": asdict(self.interval),
                    "tracking": self.tracking.state_dict(),
                    "versions": distributed.package_versions(),
                    "masks": MASKS,
                }
                folder, keep = self.dir / "checkpoints", self.config.train.keep_checkpoints
                checkpoint.publish(folder, self.cursor.step, tensors, values, keep)

    def stopped(self, signal: int) -> Outcome:
        """Leave after a signal; the checkpoint is written."""
        if self.cursor.best is None:
            self._export()
        self.progress.line(
            f"stopped by signal {signal} after step {self.cursor.step}; model in {self.dir / 'model'}; "
            f"go on with --train.run_dir {self.dir} --train.resume true"
        )
        self.accelerator.end_training()
        return Outcome(self.dir, signal=signal)

    def finish(self) -> Outcome:
        """Score the best model at one column and mark the run as finished."""
        if self._finished:
            distributed.print_main(self.accelerator, f"{self.dir} is finished already")
            self.accelerator.end_training()
            return Outcome(self.dir, summary=self._finished)
        # After the last checkpoint, so that a run that grows from it does not see them.
        if self.interval.targets:
            self.log()
        if self.cursor.validated < self.cursor.step:
            self.validate()
        with together(self.accelerator):
            best = LSTMLanguageModel.from_pretrained(self.dir / "model").weights() if self._is_main else None
        self.step.model.load_weights(distributed.main_tensors(self.accelerator, best))
        valid, test = self._evaluate("validation", 1), self._evaluate("test", 1)
        self._log({"test/loss": test.loss, "test/ppl": test.ppl})
        summary = {
            **asdict(self.cursor),
            "valid": _figures(valid),
            "test": _figures(test),
            "parameters": self._parameters,
            "precision": self.config.train.precision,
            "ranks": self.accelerator.num_processes,
            "device": str(self.accelerator.device.type),
            "versions": distributed.package_versions(),
        }
        with together(self.accelerator):
            if self._is_main:
                replace_file(self.dir / "summary.json", json.dumps(summary, indent=2).encode())
        self.progress.line(
            f"test ppl {test.ppl:.2f}, validation ppl {valid.ppl:.2f} (1 column); model in {self.dir / 'model'}"
        )
        self.accelerator.end_training()
        return Outcome(self.dir, summary=summary)

    def _refuse_to_overwrite(self) -> None:
        for name in ("config.yaml", "metrics.jsonl", "checkpoints", "model", "summary.json"):
            if (self.dir / name).exists():
                raise UserError(
                    f"{self.dir} holds a run already ({name}): go on with it with --train.resume true, or name another train.run_dir"
                )

    def _resume(self) -> None:
        """Take over the newest complete checkpoint where resuming is asked for and there is one."""
        found: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._finished: dict[str, Any] | None = None
        with together(self.accelerator):
            if self._is_main and self.config.train.resume:
                path, damaged = checkpoint.newest(self.dir / "checkpoints")
                for line in damaged:
                    distributed.print_main(self.accelerator, line)
                if path is None and damaged:
                    raise UserError(
                        f"no checkpoint in {self.dir / 'checkpoints'} is whole: name another train.run_dir to start afresh"
                    )
                if path is None:
                    self._start_afresh()
                else:
                    found = checkpoint.load(path)
                    checkpoint.check_resumable(found[1], self._identity())
                    distributed.print_main(self.accelerator, f"going on from {path}")
                    if found[1].get("masks") != MASKS and self.config.model.dropout:
                        distributed.print_main(
                            self.accelerator,
                            f"{path} was written by a version with other dropout masks: the run goes on with today's, so it is not "
                            "the run that either version would have made alone",
                        )
                self._finished = self._read_summary(found)
        values = distributed.main_value(self.accelerator, found and found[1])
        self._finished = distributed.main_value(self.accelerator, self._finished)
        if values is None:
            return
        self.step.load_state_dict(distributed.main_tensors(self.accelerator, found and found[0]), values)
        self.cursor = Cursor(**values["cursor"])
        self.interval = Interval(**values["interval"])
        if not self._finished:
            with together(self.accelerator):
                self.tracking.load_state_dict(values["tracking"])

    def _start_afresh(self) -> None:
        """Where resuming finds no checkpoint: only what a run of the same configuration left before its first one may go."""
        if (self.dir / "summary.json").exists():
            raise UserError(f"{self.dir} holds a finished run without its checkpoints: name another train.run_dir")
        if (self.dir / "config.yaml").exists():
            written = {"config": yaml.safe_load((self.dir / "config.yaml").read_bytes())}
            same_data = {"data_fingerprint": self.corpus.fingerprint}  # not known; what it made of it is replaced
            checkpoint.check_resumable(written | same_data, self._identity())
        (self.dir / "metrics.jsonl").unlink(missing_ok=True)
        distributed.print_main(self.accelerator, f"no checkpoint in {self.dir} yet: starting afresh")

    def _write_config(self) -> None:
        with together(self.accelerator):
            if self._is_main:
                (self.dir / "summary.json").unlink(missing_ok=True)
                replace_file(self.dir / "config.yaml", yaml.safe_dump(self.config.to_dict(), sort_keys=False).encode())

    def _read_summary(self, found: tuple[dict[str, Any], dict[str, Any]] | None) -> dict[str, Any] | None:
        """The summary of a run that has nothing left to do."""
        path = self.dir / "summary.json"
        if found is None or not path.exists() or found[1]["cursor"]["step"] < self.step.total_steps:
            return None
        return json.loads(path.read_bytes())

    def _identity(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "data_fingerprint": self.corpus.fingerprint}

    def _facts(self) -> dict[str, Any]:
        return {
            **self.config.to_dict(),
            "ranks": self.accelerator.num_processes,
            "device": distributed.device_kind(self.accelerator.device),
            "parameters": self._parameters,
            "vocab_size": len(self.corpus.vocabulary),
            "git_commit": git_commit(),
            "versions": distributed.package_versions(),
        }

    @property
    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.step.model.parameters())

    @property
    def _epoch(self) -> int:
        """Number of the epoch that the last step belongs to, from 1."""
        return self.cursor.epoch + (self.cursor.row > 0)

    def _log(self, metrics: dict[str, float]) -> None:
        with together(self.accelerator):
            self.tracking.log({"step": self.cursor.step, "epoch": self._epoch, "tokens": self.cursor.tokens, **metrics})

    def _evaluate(self, split: str, columns: int, interrupted: Callable[[], bool] = lambda: False) -> Evaluation:
        stream = self.corpus.splits[split]
        return evaluate_stream(self.step.model, stream, columns, self.accelerator, interrupted=interrupted)

    def _samples(self) -> list[str]:
        vocabulary = self.corpus.vocabulary
        samples = generation.sample(self.step.model, vocabulary, [vocabulary.eos], SAMPLES, SAMPLE_LENGTH, seed=0)
        return [vocabulary.decode(ids) for ids in samples]

    def _export(self) -> None:
        """Write `model/`, all that evaluation and generation need."""
        data, folder = self.config.data, self.dir / "model"
        with together(self.accelerator):
            if self._is_main:
                folder.mkdir(exist_ok=True)
                card = MODEL_CARD.format(
                    dataset=data.dataset,
                    parameters=self._parameters,
                    vocab_size=len(self.corpus.vocabulary),
                    level=data.level,
                )
                for name, content in {
                    "vocab.json": self.corpus.vocabulary.to_bytes(),
                    "README.md": card.encode(),
                }.items():
                    if not (folder / name).exists() or (folder / name).read_bytes() != content:
                        replace_file(folder / name, content)
                source = {"dataset": data.dataset, "subset": data.subset, "level": data.level}
                # One entry: the order of several in the file's header is not fixed.
                metadata = {"exported": json.dumps({"step": self.cursor.step, "valid_ppl": self.cursor.best})}
                self.step.model.save_pretrained(folder, source, metadata)


def _figures(result: Evaluation) -> dict[str, float]:
    return {"loss": result.loss, "ppl": result.ppl, "targets": result.targets, "columns": result.columns}


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
