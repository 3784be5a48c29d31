"""What several ranks do together: sums, agreement on values and errors, stop signals."""

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch import distributed as dist

from lstmlm.console import UserError
from lstmlm.files import cannot_write

T = TypeVar("T")

logger = logging.getLogger(__name__)
_waits = itertools.count()  # every rank waits as often
TELL_SECONDS = 60.0  # between two lines of who waits

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
STOP_CHECK_STEPS = 10  # steps between two agreements of several ranks on whether to stop


def check_alike(what: str, values: dict[str, Any]) -> None:
    """Refuse to go on, on every rank, where `values`, which the message calls `what`, are not the same on all of them."""
    first, *others = gather_object([values])
    for rank, other in enumerate(others, start=1):
        for name in first:
            if other[name] != first[name]:
                told = f"{name} is {first[name]} on rank 0 and {other[name]} on rank {rank}"
                raise UserError(f"{what} differs between ranks: {told}; start every rank with the same command, files and packages")


@contextmanager
def together_however_long(accelerator: Accelerator, doing: str, timeout_minutes: float) -> Iterator[None]:
    """Run a block that may take one rank hours longer than another, and wait at its end for all; a line each minute says what they do.

    The wait is no collective: the ranks count in the group's store, and those within the block give signs of life there. So none is
    taken for lost after `timeout_minutes`, unless there were no signs for so long.
    """
    if accelerator.num_processes == 1:
        yield
        return
    store, key, ended = dist.distributed_c10d._get_default_store(), f"lstmlm/waits/{next(_waits)}", threading.Event()

    def give_signs() -> None:
        with suppress(RuntimeError):  # the store's host is gone, which the wait tells
            while not ended.wait(min(10, 15 * timeout_minutes)):  # seconds: four signs within the timeout, or more
                store.add(f"{key}/signs", 1)

    threading.Thread(target=give_signs, daemon=True).start()
    try:
        yield
    except (UserError, OSError):
        ended.set()
        with suppress(RuntimeError):  # this error is the one to tell, also where another rank is lost
            _wait_for_all(store, key, accelerator.num_processes, doing, timeout_minutes)
        raise
    finally:
        ended.set()
    _wait_for_all(store, key, accelerator.num_processes, doing, timeout_minutes)


def _wait_for_all(store: dist.Store, key: str, ranks: int, doing: str, timeout_minutes: float) -> None:
    heard_at, heard = time.monotonic(), 0
    told_at = heard_at + TELL_SECONDS
    store.add(key, 1)
    while (here := store.add(key, 0)) < ranks:
        now, signs = time.monotonic(), store.add(f"{key}/signs", 0)
        if signs > heard:
            heard, heard_at = signs, now
        if now > heard_at + 60 * timeout_minutes:
            raise RuntimeError(f"Timed out: {ranks - here} of {ranks} ranks gave no sign of life for {timeout_minutes:g} minutes")
        if now >= told_at:
            logger.warning("waiting for %d of %d ranks: they %s", ranks - here, ranks, doing)
            told_at += TELL_SECONDS
        time.sleep(0.1)


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Run a block on every rank; where it fails on one with a `UserError` or `OSError`, it fails on all with that as a `UserError`."""
    error: UserError | None = None
    try:
        yield
    except UserError as caught:
        error = caught
    except OSError as caught:
        error = UserError(cannot_write(caught))
    if accelerator.num_processes > 1:
        try:
            error = next(filter(None, [error, *gather_object([error])]), None)
        except RuntimeError:  # another rank is lost
            if error is None:
                raise
    if error is not None:
        raise error


def main_value(accelerator: Accelerator, value: Any) -> Any:
    """The main rank's value, on every rank."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def main_tensors(accelerator: Accelerator, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The main rank's tensors, on the CPU of every rank, so that only the main rank needs to see the files."""
    if accelerator.num_processes == 1:
        assert tensors is not None
        return tensors
    shapes = main_value(accelerator, tensors and {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    received = {}
    for name, (shape, dtype) in shapes.items():
        buffer = tensors[name].to(accelerator.device) if tensors else torch.empty(shape, dtype=dtype, device=accelerator.device)
        dist.broadcast(buffer, 0)
        received[name] = buffer.cpu()
    return received


def sum_over_ranks(accelerator: Accelerator | None, values: Tensor) -> Tensor:
    """Sum of a tensor over ranks, in its own precision, on the accelerator's device; where there is one rank, the tensor itself."""
    if accelerator is not None and accelerator.num_processes > 1:
        values = values.to(accelerator.device, copy=True)
        dist.all_reduce(values)
    return values


def rounds(accelerator: Accelerator | None, items: Iterable[T], interrupted: Callable[[], bool]) -> Iterator[tuple[T | None, int]]:
    """Each rank's own items, one a round, None where it has no more; and how many ranks had one. Without an accelerator there is one rank.

    The ranks meet before every round, until all are at their end. One with little to do, or nothing, so waits for one item of the others
    at a time, which takes much less than `train.timeout_minutes`: long work is not taken for a lost rank.

    Raises:
        InterruptedError: `interrupted` said so on some rank; all ranks raise it in the same round.
    """
    own = iter(items)
    while True:
        item = next(own, None)
        counts = torch.tensor([item is not None, interrupted()], dtype=torch.int64)
        working, stopped = sum_over_ranks(accelerator, counts).tolist()
        if not working:
            return
        if stopped:
            raise InterruptedError
        yield item, working


class StopRequest:
    """Whether somebody asked the run to stop: SIGTERM or SIGUSR1 on any rank, or SIGINT or SIGHUP unless it began ignored.

    The first signal sets a flag that is read between steps. A second one within a second counts as the same notice, because a
    launcher and a scheduler may both deliver it. A later one ends the process at once, as signals do by default. A rank waits for
    the others' answer for `timeout_minutes`.
    """

    def __init__(self, accelerator: Accelerator, timeout_minutes: float) -> None:
        self._signal = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._several = accelerator.num_processes > 1
        # Over gloo, in host memory, so that asking does not wait for a GPU.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes)) if self._several else None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # What nohup, or a shell script that puts the run into its background (`&`), keeps from it.
            spared = [number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN]
            heard = [number for number in STOP_SIGNALS if number not in spared]
            self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # Of several ranks that fail, the launcher ends the others by SIGTERM: each must come to say why first.
        if kind is None or not self._several:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._since = number, time.monotonic()
        elif time.monotonic() > self._since + 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def heard(self) -> bool:
        """Whether this rank was told to stop. The others may not know: `agreed` decides."""
        return self._signal != 0

    def agreed(self, step: int, at_event: bool) -> int:
        """The signal that some rank got, or 0; every rank calls this with the same arguments and gets the same answer.

        Several ranks ask each other at events and every STOP_CHECK_STEPS steps only; in between the answer is 0.
        """
        if not self._several:
            return self._signal
        if not at_event and step % STOP_CHECK_STEPS:
            return 0
        number = torch.tensor(self._signal)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)
