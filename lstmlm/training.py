"""Training: set-up, the loop, the end. Start reading here."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from lstmlm import distributed
from lstmlm.config import Config, UsageError
from lstmlm.corpus import load_corpus
from lstmlm.distributed import StopRequest, together
from lstmlm.model import LSTMLanguageModel
from lstmlm.run import Outcome, Run
from lstmlm.step import TrainStep
from lstmlm.stream import Table


def train(config: Config) -> Outcome:
    """Train a model as the configuration says, or go on with a run that was stopped.

    Raises:
        UserError: In one line: what is wrong, where, what to do. Nothing is written over.
    """
    config = distributed.resolve_precision(config)
    accelerator = distributed.start(config)
    config = _with_run_dir(config, accelerator)
    with together(accelerator):
        corpus = load_corpus(config.data)
    distributed.check_alike(accelerator, "data", {"fingerprint of the tokens": corpus.fingerprint[:12]})
    stream = corpus.splits["train"]
    if config.data.batch_size >= len(stream):
        raise UsageError(
            f"data.batch_size is {config.data.batch_size}, but the {len(stream)} tokens of the training split make only "
            f"{len(stream) - 1} pairs of input and target, and every column needs one"
        )
    world_size = accelerator.num_processes
    table = Table(stream, config.data.batch_size, accelerator.process_index, world_size, accelerator.device)
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(config.model, len(corpus.vocabulary))
    total_steps = config.train.epochs * table.num_windows(config.data.bptt, config.train.accumulate)
    total_steps = min(total_steps, config.train.max_steps or total_steps)
    step = TrainStep(config, accelerator, model, table, total_steps)

    with Run(config, accelerator, corpus, step) as run:
        with StopRequest(accelerator, config.train.timeout_minutes) as stop:
            cursor = run.cursor
            if cursor.owes_validation:
                run.validate(stop.alone)
                if told := stop.agreed(cursor.step, at_event=True):
                    return run.stopped(told)  # nothing has changed since the checkpoint, which still owes it
            while cursor.step < total_steps:
                for window in table.windows(config.data.bptt, config.train.accumulate, start=cursor.row):
                    step(window, cursor.step, cursor.segment)
                    cursor.advance(window)
                    # Events happen between steps, always in this order: a checkpoint's cursor says just what comes next.
                    due = run.events()
                    told = stop.agreed(cursor.step, at_event=any(due))
                    if not any(due) and not told:
                        continue
                    run.read_losses()  # raises where one is not finite, before anything is saved
                    if due.log:
                        run.log()
                    if due.evaluate:
                        run.validate(stop.alone)
                        told = told or stop.agreed(cursor.step, at_event=True)
                    if due.epoch:
                        cursor.next_epoch()
                        step.reset_state()
                    if due.save or told:
                        run.save()
                    if told:
                        return run.stopped(told)
                    if due.end:
                        break
                    run.restart_clock()
            if told := stop.agreed(cursor.step, at_event=True):  # during the last events
                return run.stopped(told)
        return run.finish()


def _with_run_dir(config: Config, accelerator: Accelerator) -> Config:
    """The configuration with the directory that the main rank chose where none was named."""
    chosen = config.train.run_dir
    if chosen is None:
        # A Hub id's or folder's last part
        name = config.tracking.run_name or Path(config.data.dataset).expanduser().absolute().name
        chosen = str(Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}")
    chosen = distributed.main_value(accelerator, chosen)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, run_dir=chosen))
