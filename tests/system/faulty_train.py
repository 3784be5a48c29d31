"""scripts/train.py with a fault put into one rank; or slow_data, with data that take it FAULT_STEP seconds longer; or kill_data,
which it does not outlive.

FAULT=kind (exception, kill, pause, pause_validation, nan, disk; in the final scoring: slow_end, kill_end, hang_end),
FAULT_RANK=r, FAULT_STEP=k; FAULT_ONCE spares restarts. With PARTING set, every rank tells at each end of a process group which one it is
and how many DDP wrappers are still there; faults to go with it are signal and in_forward.
"""

import os
import signal
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lstmlm import LSTMLanguageModel
from lstmlm.cli import train
from lstmlm.console import print_line, run_script
from lstmlm.evaluation import perplexity
from lstmlm.runtime import distributed
from lstmlm.training import build, checkpoint
from lstmlm.training.run import Run
from lstmlm.training.step import TrainStep

KIND, RANK, STEP = os.environ["FAULT"], os.environ["FAULT_RANK"], int(os.environ["FAULT_STEP"])
call, write_file, score = TrainStep.__call__, checkpoint.write_file, LSTMLanguageModel.score
final_figures = Run._final_figures
load = build.load_corpus
scored = 0
wrappers: "weakref.WeakSet[DistributedDataParallel]" = weakref.WeakSet()
init, destroy = DistributedDataParallel.__init__, dist.destroy_process_group


def counted(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
    init(self, *args, **kwargs)
    wrappers.add(self)


def parted(group: Any = None) -> None:
    print_line(f"parting: rank {os.environ['RANK']} ends {'all' if group is None else 'stop'} with {len(wrappers)} wrappers")
    destroy(group)


def pause(signals: int) -> None:
    """Until the test has sent so many signals, so that nothing depends on how fast this machine is."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # a byte for each
    print_line("paused")
    for _ in range(signals):
        os.read(reading, 1)


def faulty_call(self: TrainStep, window: Any, *, step: int, **numbers: int) -> None:
    if step == STEP and KIND == "exception":
        raise ValueError("a fault of this rank alone")
    if step == STEP and KIND == "in_forward":
        self.wrapped_model(None, None, None)  # DDP's, which the traceback then holds
    if step == STEP and KIND == "signal":
        signal.raise_signal(signal.SIGTERM)
    if step == STEP and KIND == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == STEP and KIND == "pause":
        pause(int(os.environ.get("FAULT_PAUSES", "1")))
    if step == STEP and KIND == "nan":
        for hidden, _ in self.state:
            hidden.fill_(torch.nan)
    call(self, window, step=step, **numbers)


def at_the_end(self: Run) -> Any:
    """Score some 20 segments at the end."""
    perplexity.SEGMENT_TOKENS = 25
    LSTMLanguageModel.score = faulty_score  # type: ignore[method-assign]
    return final_figures(self)


def faulty_score(self: LSTMLanguageModel, *args: Any) -> Any:
    """Wait for a signal in the middle of the first evaluation; or take 0.3 s for a segment at the end, or make the third the last."""
    global scored
    scored += 1
    if scored == 2 and KIND == "pause_validation":
        pause(1)
    if scored == 3 and KIND == "kill_end":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND.endswith("_end"):
        time.sleep(600 if scored == 3 and KIND == "hang_end" else 0.3)
    return score(self, *args)


def slow_data(*args: Any) -> Any:
    if KIND == "kill_data":
        os.kill(os.getpid(), signal.SIGKILL)
    corpus = load(*args)
    time.sleep(STEP)
    return corpus


def full_disk(path: Path, content: bytes) -> None:
    if path.name == "state.safetensors" and f"step_{STEP:08d}" in str(path):
        raise OSError(28, "No space left on device")
    write_file(path, content)


if __name__ == "__main__":
    distributed.TELL_SECONDS = 2
    if "PARTING" in os.environ:
        DistributedDataParallel.__init__ = counted  # type: ignore[method-assign]
        dist.destroy_process_group = parted
    spared = "FAULT_ONCE" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if os.environ.get("RANK", "0") == RANK and not spared:
        TrainStep.__call__ = faulty_call  # type: ignore[method-assign]
        if KIND == "pause_validation":
            LSTMLanguageModel.score = faulty_score  # type: ignore[method-assign]
            perplexity.SEGMENT_TOKENS = 100  # several segments in the small text
        if KIND.endswith("_end"):
            Run._final_figures = at_the_end  # type: ignore[method-assign]
        if KIND.endswith("_data"):
            build.load_corpus = slow_data  # type: ignore[assignment]
        if KIND == "disk":
            checkpoint.write_file = full_disk
    sys.exit(run_script(train))
