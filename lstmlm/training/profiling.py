"""Where the time of a few steps goes, by PyTorch's profiler."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.profiler import profile

from lstmlm.console import print_line
from lstmlm.files import cannot_write, replace_file

WAIT, DISCARDED = 8, 2  # steps that run as they are, and steps whose profile is thrown away, before those that count
ROWS = 10  # of the table


@contextmanager
def profiled(accelerator: Accelerator, steps: int, folder: Path) -> Iterator[Callable[[bool], None]]:
    """Profile so many steps of this process after the first ones, and leave `trace.json` and `table.txt` in a folder.

    Yields:
        To be called after every step, with whether it was the last: nothing after the call belongs to that one.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's library writes lines of its own to standard error
    done = 0

    def write(profiler: profile) -> None:
        trace, temporary, table = folder / "trace.json", folder / ".trace.json", folder / "table.txt"
        order = "self_cpu_time_total" if accelerator.device.type == "cpu" else "self_device_time_total"
        try:
            folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(temporary))
            temporary.replace(trace)
            replace_file(table, profiler.key_averages().table(sort_by=order, row_limit=ROWS).encode())
            print_line(f"profile: {trace} (for ui.perfetto.dev) and {table}")
        except OSError as error:  # not worth the run
            print_line(f"warning: no profile: {cannot_write(error)}")

    def step(last: bool) -> None:
        nonlocal done
        done += 1
        if not last:
            profiler.step()  # the next one begins

    schedule = {"wait": WAIT, "warmup": DISCARDED, "active": steps, "repeat": 1}
    with accelerator.profile(ProfileKwargs(schedule_option=schedule, on_trace_ready=write)) as profiler:
        yield step
    counted = max(0, done - WAIT - DISCARDED)
    if counted < steps:
        told = f"train.profile asks for {steps} steps after the first {WAIT + DISCARDED}, but {counted} were profiled"
        print_line(f"warning: {told}: this start ended after {done}")
