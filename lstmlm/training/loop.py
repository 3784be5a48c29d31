"""Training: set-up, the loop, the end. Start reading here."""

import torch

from lstmlm.config import Config
from lstmlm.console import UsageError
from lstmlm.data.corpus import load_corpus
from lstmlm.data.table import Table
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.runtime import launch
from lstmlm.runtime.distributed import StopRequest, check_alike, fail_together
from lstmlm.training.run import Outcome, Run
from lstmlm.training.step import TrainStep, check_memory


def train(config: Config) -> Outcome:
    """Train a model as the configuration says, or go on with a run that was stopped.

    Raises:
        UserError: In one line: what is wrong, where, what to do. Nothing is written over.
    """
    config = launch.resolve_precision(config)
    with launch.started(config) as accelerator, Run(config, accelerator) as run:
        if run.finished:
            return run.leave_alone(run.finished)
        with fail_together(accelerator):
            corpus = load_corpus(config.data)
        check_alike(accelerator, "data", {"fingerprint of the tokens": corpus.fingerprint[:12]})
        stream = corpus.splits["train"]
        if config.data.batch_size >= len(stream):
            raise UsageError(
                f"data.batch_size is {config.data.batch_size}, but the {len(stream)} tokens of the training split make only "
                f"{len(stream) - 1} pairs of input and target, and every column needs one"
            )
        with fail_together(accelerator):
            check_memory(config, len(corpus.vocabulary), len(stream), accelerator)
        rank, world_size = accelerator.process_index, accelerator.num_processes
        table = Table(stream, config.data.batch_size, rank, world_size, accelerator.device)
        torch.manual_seed(config.train.seed)
        model = LSTMLanguageModel(config.model, len(corpus.vocabulary))
        total_steps = config.train.epochs * table.num_windows(config.data.bptt, config.train.accumulate)
        total_steps = min(total_steps, config.train.max_steps or total_steps)
        train_step = TrainStep(config, accelerator, model, table, total_steps)

        run.begin(corpus, train_step)
        with StopRequest(accelerator, config.train.timeout_minutes) as stop:
            cursor = run.cursor
            if cursor.owes_validation:
                run.validate(stop.alone)
                if run.ended():
                    run.save()  # as the validation was the last
                if stop_signal := stop.agreed(cursor.step, at_event=True):
                    return run.stopped(stop_signal)  # nothing has changed since the checkpoint, which owes it too
            while not run.ended():
                for window in table.windows(config.data.bptt, config.train.accumulate, start=cursor.row):
                    train_step(window, cursor.step, cursor.segment)
                    cursor.advance(window)
                    # Events happen between steps, always in this order: a checkpoint's cursor says just what comes next.
                    due = run.events()
                    stop_signal = stop.agreed(cursor.step, at_event=any(due))
                    if not any(due) and not stop_signal:
                        continue
                    run.read_losses()  # raises where one is not finite, before anything is saved
                    if due.log:
                        run.log()
                    if due.evaluate:
                        run.validate(stop.alone)
                        stop_signal = stop_signal or stop.agreed(cursor.step, at_event=True)
                    if due.epoch:
                        cursor.next_epoch()
                        train_step.reset_state()
                    if due.save or run.ended() or stop_signal:
                        run.save()
                    if stop_signal:
                        return run.stopped(stop_signal)
                    if run.ended():
                        break
                    run.restart_clock()
            if stop_signal := stop.agreed(cursor.step, at_event=True):  # during the last events
                return run.stopped(stop_signal)
        return run.finish()
