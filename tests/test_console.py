"""What a person sees: one line for each error, nothing that a terminal would obey, results that stay exact in a pipe."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lstmlm import console
from lstmlm.console import Progress, UserError, print_line, print_result, printable, run_script, standard_output
from tests.helpers import ROOT, read_terminal

EVIL = "a\x1b[31m\x07\r\u202eb\x9b\udcff"


def on_a_terminal(work: Callable[[], object]) -> bytes:
    """What a forked process shows whose standard streams are a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            work()
        finally:
            os._exit(0)
    shown = read_terminal(terminal)
    os.waitpid(pid, 0)
    return shown


def test_what_a_terminal_would_obey_is_shown_escaped() -> None:
    for kept in ("naïve 語\t\n", "\u3000語", "می\u200cروم", "oui\u202f!"):
        assert printable(kept, "\n\t") == kept
    shown = printable(EVIL)
    assert shown == r"a\x1b[31m\x07\r\u202eb\x9b\udcff"
    assert printable("a\nerror: b") == r"a\nerror: b"

    def show() -> None:
        print_result(f"{EVIL}\tb")
        print_line(EVIL)
        with standard_output() as out:
            out.writelines([f"{EVIL}\n".encode(errors="surrogateescape")])

    assert on_a_terminal(show) == f"{shown}\tb\r\n{shown}\r\n{shown}\r\n".encode()


def test_a_result_in_a_pipe_is_exact(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with open(1, "w", closefd=False) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        print_result(EVIL)
    assert capfdbinary.readouterr().out == EVIL.encode(errors="surrogateescape") + b"\n"


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (UserError("no\nuse \x1b"), r"error: no\nuse \x1b", 1),
        (FileNotFoundError(2, "No such file or directory", " a\n\n b\t"), "error: a b: No such file or directory", 1),
        (OSError(36, "File name too long", "a" * 999), f"error: {'a' * 300}: File name too long", 1),
        (torch.OutOfMemoryError("CUDA"), "error: rank 0 has no memory left (CUDA): use fewer columns, fewer rows or a smaller model", 1),
        (KeyboardInterrupt(), "error: interrupted; what was saved before is intact", 130),
        (KeyboardInterrupt(signal.SIGTERM), "error: interrupted; what was saved before is intact", 143),
    ],
)
def test_an_error_is_one_line_and_a_status(error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        with standard_output():  # which is not to blame
            raise error

    assert run_script(main) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UserError, match="standard output is closed"):
        print_result("a")
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match="cannot write to standard output: No space left on device"):
            print_result("a" * 99_999)


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(console, "on_terminal", lambda: terminal)
    return screen


@pytest.mark.parametrize(("columns", "last_field"), [(40, "step"), (80, "tokens"), (120, "loss")])
def test_a_narrow_terminal_leaves_out_what_is_least_wanted(columns: int, last_field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda screen: (columns - 1, 24))
    screen = shown(monkeypatch, terminal=True)
    progress = Progress(True, total_steps=40_000, steps_per_epoch=1000, step=0)
    progress.show(1, 4.5, 90.0171, 12_345.6)
    progress.step(2)
    progress.close()
    last = screen.getvalue().strip("\r\n").split("\r")[-1]
    whole = "epoch 1/40, step 2/40,000, TIME left, ppl 90.02, 12,346 tokens/s, loss 4.500"
    fields, bar, _ = re.sub(r"[\d:]+ left", "TIME left", last).split("|")
    assert whole.startswith(fields.strip())
    assert last_field in fields.split(", ")[-1]
    assert len(bar) >= 8
    assert len(last) < columns


def test_a_log_has_one_time_left_and_tells_of_a_long_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown(monkeypatch, terminal=False)
    monkeypatch.setattr(console, "LINE_SECONDS", 0)
    progress = Progress(True, total_steps=30, steps_per_epoch=15, step=5)
    progress.show(16, 4.5, float("inf"), 12_345.6)
    with progress.scoring("scoring test", 1000) as tick:
        tick(250)
        tick(1024)
    told = re.sub(r"\d+:\d\d:\d\d ", "", screen.getvalue())
    assert re.sub(r"\d+:\d\d left", "TIME left", told).splitlines() == [
        "epoch 2/2, step 16/30, TIME left, ppl infinite, 12,346 tokens/s, loss 4.500",
        "scoring test: 25%, TIME left",
        "scoring test: 100%, TIME left",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_library_s_line_that_nobody_can_read_does_not_end_the_program() -> None:
    code = "import sys; from lstmlm.console import run_script; sys.exit(run_script(lambda: sys.stderr.write('x\\n') and 0))"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full, cwd=ROOT).returncode == 0


def test_a_terminal_without_a_size_gets_lines() -> None:
    """`ssh -tt`, `docker run -t` and CI give such ones; a bar shows nothing there."""

    def show() -> None:
        progress = Progress(True, total_steps=30, steps_per_epoch=15, step=0)
        progress.step(10)
        progress.show(10, 4.5, 90.0, 1000)
        progress.close()

    assert b"epoch 1/2, step 10/30" in on_a_terminal(show)  # pty.fork gives it none
