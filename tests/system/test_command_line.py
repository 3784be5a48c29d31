"""What a user types, in a process of its own: exit status, the one line, signals."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm import load_config
from tests.helpers import Small, assert_same_run, fresh_train, read_terminal
from tests.system.launcher import FAULTY, TRAIN, error_lines, pause_at, start

LOG_LINE = r"\d\d:\d\d:\d\d epoch \d+/\d+, step [\d,]+/[\d,]+, "


def test_what_a_run_says(small: Small, cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Ten lines before, no bar in a log, a table after, the result last; nothing on standard output."""
    result = cli("train", *small("--train.log_every=10"))
    assert (result.returncode, result.stdout, "\r" in result.stderr) == (0, "", False), result.stderr
    lines = result.stderr.splitlines()
    logged = [i for i, line in enumerate(lines) if re.match(LOG_LINE, line) and "tokens/s" in line]
    opening = dict(line.split(maxsplit=1) for line in lines[: logged[0]] if not line.startswith(("writes", "to stop")))
    assert (len(logged), logged[0] <= 10) == (3, True)
    assert "60 types" in opening["train"]
    assert "2 x 12 LSTM, 3,276 parameters" in opening["model"]
    assert "fp32" in opening["device"]
    assert opening["ranks"].startswith("1, 20 of 20 columns each")
    assert opening["steps"].startswith("30, 2 epochs of 15; few: more epochs, ")
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    closing = {line[:10].strip(): line[11:] for line in lines[-5:]}
    assert closing["best"].startswith("epoch 2, step 30: validation ppl")
    assert closing["result"].startswith(f"test ppl {summary['test']['ppl']:.2f}, validation ppl")
    assert lines[-1].startswith("result")
    assert set(summary["seconds"]) == {"total", "training", "evaluation", "saving", "tracking"}
    words = shlex.split(closing["next"])
    assert cli("generate", *words[words.index("generate") + 1 :]).returncode == 0, "what it proposes works when pasted"


def at_a_terminal(arguments: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A run whose standard error is a terminal, in a session of its own; and the other end of that terminal."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 150))
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, TRAIN, *arguments], stdout=subprocess.DEVNULL, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    return process, controller


def test_the_bar_at_a_terminal(small: Small) -> None:
    """One bar that moves between log lines, validation lines above it, and no colour."""
    process, controller = at_a_terminal(small("--train.log_every=10"))
    text = read_terminal(controller).decode()
    assert process.wait(timeout=100) == 0, text
    assert re.search(r"\repoch 2/2, step 30/30, 00:00 left, ppl [\d.]+, [\d,]+ tokens/s, loss [\d.]+ \|.+\|", text)
    assert "\nepoch 2, step 30: validation ppl" in text.replace("\r", "\n")
    assert "\x1b[3" not in text, "no colour"
    assert text.rstrip().splitlines()[-1].startswith("result")


def test_a_terminal_that_goes_away_does_not_end_the_run(small: Small, tmp_path: Path) -> None:
    """In the middle of the bar; there is no hang-up signal, which is for the session of the terminal."""
    process, controller = at_a_terminal(small("--train.epochs=4"))
    shown = b""
    while b"/60, " not in shown:
        shown += os.read(controller, 4096)
    os.close(controller)
    assert process.wait(timeout=100) == 0
    assert (tmp_path / "run/summary.json").exists()


def test_with_standard_error_closed_a_run_goes_on(small: Small, tmp_path: Path) -> None:
    """No file of the run gets its number, and nothing goes to standard output instead."""
    shell = ["sh", "-c", 'exec "$0" "$@" <&- 2>&-', sys.executable, TRAIN]
    result = subprocess.run([*shell, *small("--train.max_steps=9")], capture_output=True, timeout=200)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    fresh_train(load_config(small("--train.max_steps=9", run="other")))
    assert_same_run(tmp_path / "run", tmp_path / "other")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe that keeps writes apart")
def test_a_line_is_one_write(small: Small) -> None:
    """So that ranks which share a pipe do not write into each other's lines."""
    reading, writing = os.pipe2(os.O_DIRECT)
    command = [sys.executable, TRAIN, *small("--optim.lr=1e38", "--train.resume=true")]
    with subprocess.Popen(command, stderr=writing) as process:
        os.close(writing)
        writes = []
        while write := os.read(reading, 65_536):
            writes.append(write.decode())
        os.close(reading)
    assert process.returncode == 1
    for begin in ("no checkpoint in", LOG_LINE, "error: the loss or its gradient is not finite"):
        (line,) = (write for write in writes if re.match(begin, write))
        assert line.count("\n") == 1
        assert line.endswith("\n")


def test_stopped_and_killed_and_started_again_is_one_run(small: Small, tmp_path: Path) -> None:
    """A signal that asks saves and leaves; SIGKILL loses what was done since the last checkpoint, and that is done again."""
    overrides = ("--train.epochs=6", "--train.eval_every=100000", "--train.log_every=100")  # no signal comes at an event
    arguments = small(*overrides, "--train.resume=true", run="cut")
    for step, number in {11: signal.SIGKILL, 30: signal.SIGTERM, 50: signal.SIGKILL}.items():
        process = start(1, arguments, FAULTY, **pause_at(step))
        process.wait_for("paused")
        process.send_signal(number)
        stopped = process.wait()
        if number == signal.SIGKILL:
            continue
        assert stopped.returncode == 128 + number, stopped.stderr
        assert f"stopped by signal {int(number)} after step {step + 1}" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert (tmp_path / f"cut/checkpoints/step_{step + 1:08d}").exists(), "which was not due"
        assert (tmp_path / "cut/model/model.safetensors").exists(), "the current weights, as no model was exported yet"
    for run in (arguments, small(*overrides, run="whole")):
        fresh_train(load_config(run))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_later_second_signal_ends_at_once(small: Small, tmp_path: Path) -> None:
    """A duplicate within a second is the same notice; a later one is not. The step itself never ends."""
    process = start(1, small("--train.save_every=100000"), FAULTY, **pause_at(9), FAULT_PAUSES="9")
    process.wait_for("paused")
    for pause in (0.2, 1.5, 0):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
    assert process.wait().returncode == -signal.SIGTERM
    assert list((tmp_path / "run/checkpoints").iterdir()) == [], "nothing was due, and nothing is half written"


COMMANDS = """
import sys
from lstmlm import cli, console
sys.exit(min(console.run_script(lambda: cli.COMMANDS[name]([option])) for name, option in zip(sys.argv[1::2], sys.argv[2::2])))
"""


def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    """In a process that is told no, as root never is unless it gives up that right."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    drop = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root needs setpriv to be refused anything")
        os.chown(closed, 54321, 54321)
        closed.chmod(0o700)
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    place = closed / "a/b"
    commands = ["train", f"--train.run_dir={place}", "train", f"--data.dataset={place}", "evaluate", f"--model={place}"]
    result = subprocess.run([*drop, sys.executable, "-c", COMMANDS, *commands], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert result.returncode != 0
    assert len(error_lines(result.stderr)) == len(result.stderr.splitlines()) == 3
    for line in result.stderr.splitlines():
        assert str(closed) in line
        assert "Permission denied" in line or "no such file or folder" in line or "there is no model" in line
    assert not (tmp_path / "runs").exists()
