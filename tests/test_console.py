"""What a person sees: one line for each error, nothing that a terminal would obey, results that stay exact in a pipe."""

import os
import pty
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm.console import UserError, one_line, print_line, print_result, printable, run_script, standard_output

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
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown


def test_what_a_terminal_would_obey_is_shown_escaped() -> None:
    assert printable("naïve 語\t\n", "\n\t") == "naïve 語\t\n"
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
        (FileNotFoundError(2, "No such file or directory", "a\nb"), "error: a b: No such file or directory", 1),
        (PermissionError(13, "Permission denied", "a"), "error: a: Permission denied", 1),
        (OSError(36, "File name too long", "a" * 999), f"error: {'a' * 300}: File name too long", 1),
        (KeyboardInterrupt(), "error: interrupted; what was saved before is intact", 130),
        (KeyboardInterrupt(signal.SIGTERM), "error: interrupted; what was saved before is intact", 143),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with standard_output():  # which is not to blame
            raise error

    assert run_script(main) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_standard_output_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UserError, match="standard output is closed"):
        print_result("a")
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match="cannot write to standard output: No space left on device"):
            print_result("a" * 99_999)


def test_an_error_of_many_lines_is_one() -> None:
    assert one_line(ValueError(" a\n\n b\tc "), 4) == "a b "
