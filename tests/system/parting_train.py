"""scripts/train.py that tells, at each end of a process group, which group it is and how many DDP wrappers are still there.

FAULT=exception raises one in step FAULT_STEP on rank FAULT_RANK; FAULT=signal sends SIGTERM to it there.
"""

import os
import signal
import sys
import weakref
from typing import Any

from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lstmlm.cli import train
from lstmlm.console import print_line, run_script
from lstmlm.training.step import TrainStep

wrappers: "weakref.WeakSet[DistributedDataParallel]" = weakref.WeakSet()
init, call, destroy = DistributedDataParallel.__init__, TrainStep.__call__, dist.destroy_process_group


def counted(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
    init(self, *args, **kwargs)
    wrappers.add(self)


def told(group: Any = None) -> None:
    which = "all" if group is None else "stop"
    print_line(f"parting: rank {os.environ['RANK']} ends {which} with {len(wrappers)} wrappers")
    destroy(group)


def faulty(self: TrainStep, window: Any, step: int, segment: int) -> None:
    call(self, window, step, segment)
    if step == int(os.environ["FAULT_STEP"]) and os.environ["RANK"] == os.environ["FAULT_RANK"]:
        if os.environ["FAULT"] == "exception":
            self.wrapped_model(None, None, None)  # within DDP's forward, which the traceback then holds
        elif os.environ["FAULT"] == "signal":
            signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    DistributedDataParallel.__init__ = counted  # type: ignore[method-assign]
    dist.destroy_process_group = told
    TrainStep.__call__ = faulty  # type: ignore[method-assign]
    sys.exit(run_script(train))
