"""A dry run: all that a run is made of, a few steps and the beginning of a validation; it tells what the run needs, and writes no run."""

import shutil
import time
from itertools import islice

import safetensors.torch
from accelerate import Accelerator
from torch import Tensor

from lstmlm.config import Config
from lstmlm.console import UserError, print_line
from lstmlm.evaluation.perplexity import SEGMENT_TOKENS, Evaluation, evaluate_stream
from lstmlm.runtime import launch
from lstmlm.runtime.distributed import fail_together, main_value
from lstmlm.runtime.hardware import peak_memory
from lstmlm.training import banner, resume, tracking
from lstmlm.training.build import build
from lstmlm.training.cursor import Cursor
from lstmlm.training.run import Outcome
from lstmlm.training.run_directory import RunDirectory
from lstmlm.training.step import TrainStep

SCORED = 512  # targets scored at one column, as the final figures are
TIMED_STEPS = 6  # the first one is slow: libraries choose their kernels, and memory is taken


def dry_run(config: Config) -> Outcome:
    """Try whether a run of a configuration, its precision resolved, could start, and measure what it needs.

    Returns:
        Of a finished run, the outcome of that. Else with this `summary`: `train/loss` and `valid/loss` of one step, in nats;
        `time/step`, `time/validation`, `time/scoring` (at the end) and `time/total`, what the run is likely to take here, in seconds;
        `memory/host` and, where there is one, `memory/gpu`, the most that the main rank used, and `disk/needed`, `disk/checkpoint`,
        `disk/model` and `disk/free`, all in bytes.

    Raises:
        UserError: Why the run could not start.
    """
    train = config.train
    directory = RunDirectory(train.run_dir or "runs")
    place = directory.path.absolute()
    with launch.started(config) as accelerator:
        past = resume.Past()
        with fail_together(accelerator):
            tracking.check_installed(config.tracking.trackers)
            if accelerator.is_main_process:
                directory.refuse_unusable()
                if train.run_dir is not None:
                    past = resume.find_past(config, directory)
        saved, summary = main_value(accelerator, (past.saved, past.summary))
        if summary is not None:
            return Outcome(place, summary=summary)
        corpus, train_step = build(config, accelerator, resume.own_vocabulary(directory, saved))
        if saved is not None:
            resume.check_data(saved.data_fingerprint, corpus.fingerprint)
        cursor, results, row_seconds = Cursor(), [], []
        for window in islice(train_step.windows(epoch=0), TIMED_STEPS):
            begin = time.perf_counter()
            train_step(window, step=cursor.step, segment=cursor.segment)
            cursor.advance(window)
            results.extend(train_step.read())  # waits for the device
            row_seconds.append((time.perf_counter() - begin) / (window.end - window.first))
        with train_step.averaged():
            beginning = corpus.splits["validation"][: SEGMENT_TOKENS * accelerator.num_processes + 1]
            valid, each_validated = _timed(train_step, beginning, train.eval_columns, accelerator)
            longest = max(corpus.splits.values(), key=len)
            for _ in range(2):  # the first time is slow
                _, each_scored = _timed(train_step, longest[: SCORED + 1], 1, accelerator)
        tensors, _ = train_step.state_dict()
        if accelerator.is_main_process:
            safetensors.torch.save(tensors)  # for its memory: a save has the tensors and the content of their file at once
        sizes = {name: tensor.nbytes for name, tensor in train_step.layout().items()}
        size, weights = sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith("model."))
        model = weights + len(corpus.vocabulary.to_bytes())
        memory = peak_memory(accelerator.device)
        train_step.close()
        step = min(row_seconds) * train_step.table.rows / train_step.steps_per_epoch  # segments may have been of any length
        steps = train_step.total_steps - (saved.cursor.step if saved is not None else 0)
        validations = steps / (train.eval_every or train_step.steps_per_epoch)
        targets = {split: len(corpus.splits[split]) for split in ("validation", "test")}
        validation, scoring = each_validated * targets["validation"], each_scored * sum(targets.values())
        figures = {
            "time/step": step,
            "time/validation": validation,
            "time/scoring": scoring,
            "time/total": steps * step + validations * validation + scoring,
            "train/loss": results[0].nll / results[0].num_targets,
            "valid/loss": valid.loss,
            **{f"memory/{name}": used for name, used in memory.items()},
            # The weights three times: the best model, the earlier best in best.safetensors, and either while it is replaced.
            "disk/needed": (train.keep_checkpoints + 1) * size + model + 2 * weights,
            "disk/checkpoint": size,
            "disk/model": model,
            "disk/free": shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free,
        }
        with fail_together(accelerator):
            if accelerator.is_main_process:
                _check_disk(figures, directory)
                for line in banner.dry_run(corpus, train_step, figures):
                    print_line(line)
        return Outcome(place, summary=figures)


def _timed(train_step: TrainStep, stream: Tensor, columns: int, accelerator: Accelerator) -> tuple[Evaluation, float]:
    """The score of a stream, and the seconds that each of its targets took."""
    begin = time.perf_counter()
    evaluation = evaluate_stream(train_step.model, stream, columns, accelerator)
    return evaluation, (time.perf_counter() - begin) / evaluation.targets


def _check_disk(figures: dict[str, float], directory: RunDirectory) -> None:
    """Refuse a disk that is too small; what a run that goes on has already there counts as room."""
    folders = (directory.checkpoints, directory.model)
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    if figures["disk/needed"] > figures["disk/free"] + there:
        needed, free = (f"{size / 1e6:,.2f} MB" for size in (figures["disk/needed"], figures["disk/free"] + there))
        raise UserError(f"the run needs {needed} of disk in {directory.path}, and {free} are free: make room or name another train.run_dir")
