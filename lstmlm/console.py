"""What a person sees of a command: results on standard output, errors of one line and the bar on standard error, and an exit status."""

import io
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from types import FrameType
from typing import Any, BinaryIO
from unicodedata import category

from tqdm import tqdm


class UserError(Exception):
    """An error that the user can mend, in one line: what is wrong, where, and what to do."""

    status = 1  # of the program: the run failed


class UsageError(UserError):
    """The command or its configuration is wrong; nothing was started."""

    status = 2


def check(holds: bool, message: str) -> None:
    """Refuse wrong use: a `UsageError` with `message`, where `holds` is false."""
    if not holds:
        raise UsageError(message)


def need(what: str, extra: str, *packages: str) -> None:
    """Import packages that an extra of lstmlm brings, or refuse (UserError) what needs them."""
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            raise UserError(f"{what} needs {package}: pip install 'lstmlm[{extra}]'") from None


def one_line(reason: object, most: int = 300) -> str:
    """An error, or what it says, in one line of `most` characters at most."""
    return " ".join(str(reason).split())[:most]


JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner


def printable(text: str, kept: str = "") -> str:
    r"""Anybody's text for a terminal, which obeys no control character in it: what is neither printable nor `kept` is shown as `\x1b`.

    Spaces of all kinds (as Chinese and French have) and the joiners within words of Persian and Hindi are printable here.
    """
    kept += JOINERS
    return "".join(c if c.isprintable() or c in kept or category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text)


def print_line(message: str) -> None:
    """A line on standard error, in one write: ranks that share it do not write into each other's lines. It is `printable`.

    Where it is closed or full, or its reader is gone, the line is lost and the run goes on.
    """
    if sys.stderr is not None:  # print would take standard output
        with suppress(OSError, ValueError):
            print(printable(message, "\t") + "\n", end="", file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether somebody sees standard error as it comes: a terminal, and one that has a size (`ssh -tt` in a script has none)."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        return False
    return all(os.get_terminal_size(sys.stderr.fileno()))


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output for results, in bytes, so that UTF-8 comes out whatever the locale. A terminal gets them `printable`.

    A reader that has enough (`| head -1`) ends the process without a word, with the status of any filter, 141. Standard output that is
    closed, or whose disk is full, is a UserError.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed, and the result would be lost")
    try:
        out = _Terminal(io.FileIO(sys.stdout.fileno(), "w", closefd=False)) if sys.stdout.isatty() else sys.stdout.buffer
        yield out
        out.flush()
    except OSError as error:
        if error.filename is not None:  # of a file
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is still buffered may go
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise UserError(f"cannot write to standard output: {error.strerror}") from None


class _Terminal(io.BufferedWriter):
    """Bytes of text, whole characters at a time, on their way to a terminal."""

    def write(self, content: Any) -> int:
        return super().write(printable(bytes(content).decode(errors="surrogateescape"), "\n\t").encode())


def print_result(text: str) -> None:
    """A result and a line end on standard output, as `standard_output` does; a file's name in it may be any bytes."""
    with standard_output() as out:
        out.write(f"{text}\n".encode(errors="surrogateescape"))


def _first_on_host() -> bool:
    """Whether this process is the one rank of its host that says what all of them have to say; a wrong LOCAL_RANK silences nobody."""
    local = os.environ.get("LOCAL_RANK", "0")
    return os.environ.get("WORLD_SIZE", "1") == "1" or local == "0" or not local.isdecimal()


class _LineHandler(logging.Handler):
    """Warnings of the library as lines of a script, once on each host: its ranks have the same."""

    def emit(self, record: logging.LogRecord) -> None:
        if _first_on_host():
            print_line(f"{record.levelname.lower()}: {record.getMessage()}")


def run_script(main: Callable[[], int]) -> int:
    """Run a script's `main` and turn an error into one line and an exit status.

    An error that the user can mend is printed once on each host; any other by the rank that has it, with Python's traceback where the
    cause may be a defect of the program.
    """
    _hold_standard_streams()
    logger = logging.getLogger("lstmlm")
    logger.handlers, logger.propagate = [_LineHandler()], False
    rank, several = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1") != "1"
    if not several:  # one of several may wait for the others in C++, where no handler of Python's is called: it must end at once
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, _interrupt)
    try:
        return main()
    except UserError as error:
        if _first_on_host():
            print_line(f"error: {error}")
        return error.status
    except KeyboardInterrupt as stop:
        if rank == "0":
            print_line("error: interrupted; what was saved before is intact")
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            print_line(f"error: {one_line(error.filename)}: {error.strerror}")
            return UserError.status
        reason = f"{type(error).__name__}: {one_line(error)}"
        if several and any(sign in reason for sign in ("closed by peer", "reset by peer", "Broken pipe", "Timed out")):
            print_line(f"error: rank {rank} lost the others: one of them ended or hangs; look for its own error line ({reason})")
            return 1
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            print_line(f"error: rank {rank} has no memory left ({one_line(error, 200)}): use fewer columns, fewer rows or a smaller model")
            return 1
        print_line(f"error: rank {rank} failed: {reason}")
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that nothing half written stays. The second time, end at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def _hold_standard_streams() -> None:
    """Open each standard stream that is closed (`2>&-`), as the next file, such as a checkpoint, would get its number and what libraries
    print there. What cannot be written to standard error is lost from here on."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        lossy = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(lossy, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


class _Lossy(io.FileIO):
    """Standard error of libraries too: what cannot be written there is lost, and the run goes on."""

    def write(self, content: Any) -> int:
        with suppress(OSError):
            return super().write(content)
        return memoryview(content).nbytes


def duration(seconds: float) -> str:
    """A time as people write it: 00:42, 12:03, 1:02:03."""
    return tqdm.format_interval(round(seconds))


def perplexity(ppl: float | None) -> str:
    """A perplexity in few characters, however large; None stands for an infinite one, which JSON cannot hold."""
    if ppl is None or math.isinf(ppl):
        return "infinite"
    return f"{ppl:.2f}" if ppl < 1e6 else f"{ppl:.1e}"


def bar(name: str, unit: str, total: int | None = None, delay: float = 0, shown: bool = True) -> "tqdm[Any]":
    """A bar of `total` units on a terminal, where it is to be shown; it appears after `delay` seconds and goes away at its end."""
    hidden = not (shown and on_terminal())
    return tqdm(desc=printable(name), unit=unit, unit_scale=True, total=total, delay=delay, leave=False, dynamic_ncols=True, disable=hidden)


def reading_bar(name: str, blocks: Iterator[str]) -> Iterator[str]:
    """Blocks of text as they come, with a bar of characters on a terminal where reading takes longer than a second."""
    with bar(name, "char", delay=1) as shown:
        for block in blocks:
            yield block
            shown.update(len(block))


BAR_WIDTH = 12  # columns of a terminal that the bar has at least
LINE_SECONDS = 30  # between two lines about a long scoring in a log


class Progress:
    """Where the run stands: a bar on a terminal, else a line with the time of day for each log interval. One process of a run shows it."""

    def __init__(self, shown: bool, total_steps: int, steps_per_epoch: int, step: int) -> None:
        self._shown, self._total, self._per_epoch = shown, total_steps, steps_per_epoch
        self._first, self._begin = step, time.monotonic()
        self._on_terminal = shown and on_terminal()
        self._figures: list[str] = []  # of the last log interval, the most wanted first
        self._bar: Any = None
        if self._on_terminal:
            self._bar = tqdm(total=total_steps, initial=step, dynamic_ncols=True, bar_format="{desc} |{bar}|")
            self._tell(step)

    def step(self, step: int) -> None:
        """After every step: the bar moves with time."""
        if self._bar is not None:
            self._tell(step)
            self._bar.update(step - self._bar.n)

    def show(self, step: int, loss: float, ppl: float, tokens_per_second: float) -> None:
        """After a log interval: the steps done so far, and the figures of the interval."""
        self._figures = [f"ppl {perplexity(ppl)}", f"{tokens_per_second:,.0f} tokens/s", f"loss {loss:.3f}"]
        if self._bar is None:
            self.line(", ".join(self._fields(step)))

    def _fields(self, step: int) -> list[str]:
        """What is told of a step, the most wanted first: where it is, the time until the last step, the figures."""
        epoch, epochs = (-(-max(1, steps) // self._per_epoch) for steps in (step, self._total))
        fields = [f"epoch {epoch}/{epochs}, step {step:,}/{self._total:,}", *self._figures]
        if step > self._first:  # what was done between the steps counts too
            seconds_per_step = (time.monotonic() - self._begin) / (step - self._first)
            fields.insert(1, f"{duration((self._total - step) * seconds_per_step)} left")
        return fields

    def _tell(self, step: int) -> None:
        """Write beside the bar what the width of the terminal allows."""
        fields = self._fields(step)
        room = (self._bar.format_dict["ncols"] or 80) - BAR_WIDTH
        while len(fields) > 1 and len(", ".join(fields)) > room:
            fields.pop()
        self._bar.set_description_str(", ".join(fields), refresh=False)

    @contextmanager
    def scoring(self, name: str, targets: int) -> Iterator[Callable[[int], object]]:
        """Shows how far a scoring is, in a bar on a terminal, else in a line now and then; to be told the targets scored since last."""
        if self._on_terminal:
            with bar(name, "token", targets) as shown:
                yield shown.update
            return
        begin = told = time.monotonic()
        done = 0

        def count(scored: int) -> None:
            nonlocal told, done
            done = min(done + scored, targets)
            now = time.monotonic()
            if now >= told + LINE_SECONDS:
                told = now
                self.line(f"{name}: {done / targets:.0%}, {duration((now - begin) * (targets / done - 1))} left")

        yield count

    def line(self, message: str) -> None:
        """A line that leaves the bar whole; in a log file, with the time of day."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.write(printable(message), file=sys.stderr)
        elif self._shown:
            print_line(message if self._on_terminal else f"{datetime.now():%H:%M:%S} {message}")

    def close(self) -> None:
        """Leave the terminal clean; lines can still follow."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
