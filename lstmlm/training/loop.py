"""Training: set-up, the loop, the end."""

from lstmlm.config import Config
from lstmlm.runtime import launch
from lstmlm.runtime.distributed import StopRequest
from lstmlm.training.build import build
from lstmlm.training.dry_run import dry_run
from lstmlm.training.run import Outcome, Run


def train(config: Config) -> Outcome:
    """Train a model as the configuration says, or go on with a run that was stopped.

    Raises:
        UserError: In one line: what is wrong, where, what to do. Nothing is written over.
    """
    config = launch.resolve_precision(config)
    if config.train.dry_run:
        return dry_run(config)
    with launch.started(config) as accelerator, Run(config, accelerator) as run:
        if run.finished:
            return run.finished
        config = run.config  # with the run's directory filled in
        corpus, train_step = build(config, accelerator, run.own_vocabulary)
        run.begin(corpus, train_step)
        with StopRequest(accelerator, config.train.timeout_minutes) as stop:
            cursor = run.cursor
            if cursor.owes_validation:
                run.validate(interrupted=stop.heard)
                if cursor.ended(config.train):
                    run.save()  # no step will come whose save would tell whether the validation is done
                if stop_signal := stop.agreed(cursor.step, at_event=True):
                    return run.leave(stop_signal)  # no step was done that a save would have to keep
                run.restart_clock()
            while not cursor.ended(config.train):
                for window in train_step.windows(cursor.epoch, start=cursor.row):  # the rest of the epoch
                    train_step(window, step=cursor.step, segment=cursor.segment, rate_cuts=cursor.rate_cuts)
                    cursor.advance(window)
                    # The save is last: its cursor counts the log line, the validation and the new epoch, so a resume repeats none of them.
                    due = run.events()
                    stop_signal = stop.agreed(cursor.step, at_event=any(due))
                    if not any(due) and not stop_signal:
                        continue
                    run.read_losses()  # raises where one is not finite, before anything is saved
                    if due.log:
                        run.log()
                    if due.evaluate and stop_signal:
                        cursor.owes_validation = True  # save at once; the next start validates first
                    elif due.evaluate:
                        run.validate(interrupted=stop.heard)
                        stop_signal = stop.agreed(cursor.step, at_event=True)
                    if due.epoch:  # after the last window
                        cursor.epoch, cursor.row = cursor.epoch + 1, 0
                        train_step.reset_state()
                    if due.save or cursor.ended(config.train) or stop_signal:
                        run.save()
                    if stop_signal:
                        return run.leave(stop_signal)
                    if cursor.ended(config.train):
                        break
                    run.restart_clock()
            if stop_signal := stop.agreed(cursor.step, at_event=True):  # in the last events: scoring at the end may take long
                return run.leave(stop_signal)
        return run.finish()
