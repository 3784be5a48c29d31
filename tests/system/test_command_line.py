"""What a user types, in a process of its own: exit status, the one line, signals."""

import json
import os
import pty
import random
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
from tests.helpers import assert_same_run, fresh_train
from tests.system.launcher import FAULTY, ROOT, error_lines, pause_at, start, wait_for_step

LOG_LINE = r"\d\d:\d\d:\d\d epoch \d+/\d+, step [\d,]+/[\d,]+, "
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def trained(cli: Cli, small: Callable[..., list[str]], tmp_path: Path) -> Path:
    result = cli("train", *small("--train.log_every=10"))
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


def test_train_evaluate_generate(trained: Path, cli: Cli, tmp_path: Path) -> None:
    summary = json.loads((trained / "summary.json").read_bytes())
    common = ["--model", str(trained / "model"), "--cache_dir", str(tmp_path / "cache")]
    result = cli("evaluate", *common, "--split", "test", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["ppl"] == pytest.approx(summary["test"]["ppl"], rel=1e-6)
    assert figures["targets"] == figures["tokens"] - 1 == summary["test"]["targets"]
    text = cli("evaluate", *common, "--split", "validation", "--columns", "3").stdout
    assert text.startswith("validation: ")
    assert "3 columns" in text
    command = ["--model", str(trained / "model"), "--prompt", "w1 w2", "--max_len", "5", "--temperature", "0.8", "--seed", "1"]
    first, again = cli("generate", *command), cli("generate", *command)
    assert first.returncode == 0
    assert first.stdout == again.stdout
    assert first.stdout.startswith("w1 w2 ")


@pytest.mark.parametrize(
    ("script", "arguments", "status", "named"),
    [
        ("train", ["--train.epoch", "3"], 2, "--train.epoch"),
        ("train", ["--config", "absent.yaml"], 2, "absent.yaml"),
        ("train", ["--model.hidden_size", "0"], 2, "model.hidden_size must be from 1 to"),
        ("train", ["--data.dataset", "./absent"], 2, "no such file or folder"),
        ("train", ["--data.dataset=toy", "--train.precision=fp16"], 2, "fp16 needs a GPU"),
        ("evaluate", ["--model", "absent"], 1, "there is no model in absent"),
        ("evaluate", ["--model", "absent", "--split", "dev"], 2, "no split 'dev'"),
        ("generate", ["--model", "absent"], 1, "there is no model in absent"),
    ],
)
def test_bad_input_is_one_line_and_a_status(cli: Cli, tmp_path: Path, script: str, arguments: list[str], status: int, named: str) -> None:
    result = cli(script, *arguments, cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert len(error_lines(result.stderr)) == 1
    assert named in error_lines(result.stderr)[0]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_unreachable_hub_is_told_with_the_two_ways_on(cli: Cli, tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    result = cli("train", f"--data.cache_dir={tmp_path / 'cache'}", f"--train.run_dir={tmp_path / 'run'}", env=environment)
    assert result.returncode == 1
    (line,) = error_lines(result.stderr)
    assert "Salesforce/wikitext" in line
    assert "name a file or folder, or toy, the built-in language" in line
    assert not (tmp_path / "run/model").exists()


def test_no_bar_in_a_log_file(trained: Path, cli: Cli, small: Callable[..., list[str]]) -> None:
    result = cli("train", *small("--train.log_every=10", run="other"))
    assert "\r" not in result.stderr
    assert sum(bool(re.match(LOG_LINE, line)) and "tokens/s" in line for line in result.stderr.splitlines()) == 3


def test_what_a_run_says(small: Callable[..., list[str]], cli: Cli, tmp_path: Path) -> None:
    """Ten lines before, a table after, the result last; nothing on standard output."""
    result = cli("train", *small("--train.log_every=10"))
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    first = next(i for i, line in enumerate(lines) if re.match(LOG_LINE, line))
    opening = dict(line.split(maxsplit=1) for line in lines[:first] if not line.startswith(("writes", "to stop")))
    assert first <= 10
    assert "60 types" in opening["train"]
    assert "2 x 12 LSTM, 3,276 parameters" in opening["model"]
    assert "fp32" in opening["device"]
    assert opening["ranks"].startswith("1, 20 of 20 columns each")
    assert opening["steps"] == "30, 2 epochs of 15"
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    closing = {line[:10].strip(): line[11:] for line in lines[-5:]}
    assert closing["best"].startswith("epoch 2, step 30: validation ppl")
    assert closing["result"].startswith(f"test ppl {summary['test']['ppl']:.2f}, validation ppl")
    assert lines[-1].startswith("result")
    assert set(summary["seconds"]) == {"total", "training", "evaluation", "saving", "tracking"}
    # Each of the two commands that it proposes works when pasted.
    words = shlex.split(closing["next"])
    assert cli("generate", *words[words.index("generate") + 1 :]).returncode == 0


def test_the_bar_at_a_terminal(small: Callable[..., list[str]]) -> None:
    """One bar that moves between log lines, validation lines above it, and no colour."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 150))
    command = [sys.executable, str(ROOT / "scripts/train.py"), *small("--train.log_every=10")]
    with subprocess.Popen(command, stderr=terminal, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(controller, 65_536)
            except OSError:  # how Linux tells that the other end is closed
                break
    text = shown.decode()
    assert process.returncode == 0, text
    assert text.startswith("starting ...\r\r\x1b[K"), "before torch is loaded, until there is more to say"
    assert re.search(r"\repoch 2/2, step 30/30, 0:00 left, ppl [\d.]+, [\d,]+ tokens/s, loss [\d.]+ \|.+\|", text)
    assert "\nepoch 2, step 30: validation ppl" in text.replace("\r", "\n")
    assert "\x1b[3" not in text, "no colour"
    assert text.rstrip().splitlines()[-1].startswith("result")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_with_standard_error_closed_a_run_goes_on(closed: str, small: Callable[..., list[str]], text_folder: Path, tmp_path: Path) -> None:
    """No file of the run gets its number, and nothing goes to standard output instead."""
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, str(ROOT / "scripts/train.py")]
    result = subprocess.run([*shell, *small("--train.max_steps=9")], capture_output=True, env=os.environ, timeout=200)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    fresh_train(load_config(small("--train.max_steps=9", run="other")))
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_a_terminal_that_goes_away_does_not_end_the_run(small: Callable[..., list[str]], tmp_path: Path) -> None:
    """In the middle of the bar; the process is in a session of its own, so it gets no hang-up signal."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 150))
    command = [sys.executable, str(ROOT / "scripts/train.py"), *small("--train.epochs=4")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True)
    os.close(terminal)
    shown = b""
    while b"/60, " not in shown:
        shown += os.read(controller, 4096)
    os.close(controller)
    assert process.wait(timeout=100) == 0
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe that keeps writes apart")
def test_a_line_is_one_write(small: Callable[..., list[str]]) -> None:
    """So that ranks which share a pipe do not write into each other's lines."""
    reading, writing = os.pipe2(os.O_DIRECT)
    command = [sys.executable, str(ROOT / "scripts/train.py"), *small("--optim.lr=1e38", "--train.resume=true")]
    with subprocess.Popen(command, stderr=writing) as process:
        os.close(writing)
        writes = []
        while write := os.read(reading, 65_536):
            writes.append(write.decode())
        os.close(reading)
    assert process.returncode == 1
    for begin in ("no checkpoint in", LOG_LINE, "error: the loss is not finite"):
        (line,) = (write for write in writes if re.match(begin, write))
        assert line.count("\n") == 1
        assert line.endswith("\n")


LONG = ("--train.epochs=10", "--train.save_every=100000", "--train.eval_every=100000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(
    number: signal.Signals, small: Callable[..., list[str]], tmp_path: Path, cli: Cli
) -> None:
    arguments = small(*LONG, "--train.resume=true", run="cut")
    process = start(1, arguments, FAULTY, **pause_at(30))
    wait_for_step(tmp_path / "cut", 30, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert f"stopped by signal {int(number)} after step 31" in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "cut/model/model.safetensors").exists(), "the current weights, as no model was exported yet"
    assert cli("train", *arguments).returncode == 0
    fresh_train(load_config(small(*LONG, run="whole")))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("epochs", [1, 2], ids=["the last", "not the last"])
def test_a_signal_cuts_a_validation_short_and_it_is_made_up_for(
    epochs: int, small: Callable[..., list[str]], tmp_path: Path, cli: Cli
) -> None:
    overrides = (f"--train.epochs={epochs}", "--train.eval_columns=1")
    arguments = small(*overrides, "--train.resume=true", run="cut")
    environment = {"FAULT": "pause_validation", "FAULT_STEP": "-1", "FAULT_RANK": "0"}
    process = start(1, arguments, FAULTY, **environment)
    wait_for_step(tmp_path / "cut", 15, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "stopped by signal 15 after step 15" in stderr
    (hint,) = (line for line in stderr.splitlines() if "stopped by" in line)
    program, script, *hinted = shlex.split(hint.split("go on with: ")[1])
    assert (Path(program).name.rstrip("0123456789."), script) == ("python", FAULTY)
    assert "validation ppl" not in stderr
    assert cli("train", *hinted).returncode == 0, "the hint can be pasted"
    fresh_train(load_config(small(*overrides, run="whole")))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_later_second_signal_ends_at_once(small: Callable[..., list[str]], tmp_path: Path) -> None:
    """A duplicate within a second is the same notice; a later one is not. The step itself never ends."""
    process = start(1, small(*LONG), FAULTY, **pause_at(30), FAULT_PAUSES="9")
    wait_for_step(tmp_path / "run", 30, process)
    for pause in (0.2, 1.5, 0):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert list((tmp_path / "run/checkpoints").iterdir()) == [], "nothing was due, and nothing is half written"


def test_sigkill_at_three_moments_loses_nothing(small: Callable[..., list[str]], tmp_path: Path, cli: Cli) -> None:
    overrides = ("--train.epochs=10", "--train.save_every=3")
    arguments = small(*overrides, "--train.resume=true", run="cut")
    for step in sorted(random.Random(7).sample(range(5, 140), 3)):
        process = start(1, arguments, FAULTY, **pause_at(step))
        wait_for_step(tmp_path / "cut", step, process)
        process.kill()
        process.communicate()
    assert cli("train", *arguments).returncode == 0
    fresh_train(load_config(small(*overrides, run="whole")))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_under_tini_as_in_the_image(small: Callable[..., list[str]], tmp_path: Path) -> None:
    tini = shutil.which("tini")
    if tini is None:
        pytest.skip("needs tini")
    command = [tini, "-s", "--", sys.executable, FAULTY, *small(*LONG)]
    environment = {**os.environ, **pause_at(30)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for_step(tmp_path / "run", 30, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by signal 15" in stderr


def test_a_run_directory_that_cannot_be_written(cli: Cli, small: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = cli("train", *small(run="file/run"))
    assert result.returncode == 1
    (line,) = error_lines(result.stderr)
    assert f"cannot write {tmp_path / 'file'}" in line
    assert "MiB free" in line


def test_another_hosts_error_is_told_there(cli: Cli) -> None:
    """The first rank of a second host is not the main rank, and nobody else can say what is wrong there."""
    ranks = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    result = cli("train", "--train.epoch=3", env=ranks)
    assert result.returncode == 2
    assert "--train.epoch" in error_lines(result.stderr)[0]


def test_two_processes_on_one_run_directory(small: Callable[..., list[str]], tmp_path: Path, cli: Cli) -> None:
    process = start(1, small(run="one"), FAULTY, **pause_at(9))
    wait_for_step(tmp_path / "one", 9, process)
    second = cli("train", *small("--train.resume=true", run="one"))
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert "another process is training in" in error_lines(second.stderr)[0]


def test_wandb_offline_without_a_key(small: Callable[..., list[str]], cli: Cli, tmp_path: Path) -> None:
    trackers = ["--tracking.trackers=[wandb]", "--tracking.group=g", "--tracking.tags=[a]", "--train.max_steps=3"]
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, str(ROOT / "scripts/train.py"), *small(*trackers)]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    result = subprocess.run(command, capture_output=True, text=True, env=plain | environment, timeout=200, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no W&B key found: logging offline") == 1
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))) == 1


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
    for script, option in (("train", "train.run_dir"), ("train", "data.dataset"), ("evaluate", "model")):
        command = [*drop, sys.executable, str(ROOT / "scripts" / f"{script}.py"), f"--{option}={closed / 'a/b'}"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
        assert result.returncode != 0
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert str(closed) in line
        assert "Permission denied" in line or "no such file or folder" in line or "there is no model" in line
        assert not (tmp_path / "runs").exists()
