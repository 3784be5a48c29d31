"""What trackers are told. W&B writes offline, and its own file is read back."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import wandb

from lstmlm import UserError, load_config, train
from lstmlm.training import tracking
from lstmlm.training.run import Run
from tests.helpers import ROOT, Small, at_step, fresh_train, lose_power
from tests.training.wandb_file import offline_runs

TRACKED = ("--tracking.trackers=[wandb]", "--tracking.mode=offline")


@pytest.fixture(autouse=True)
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads the environment once in a process: each test begins as a new one would."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    wandb.teardown()


def test_one_run_over_two_starts(small: Small, tmp_path: Path) -> None:
    named = {"run_name": "trial", "project": "p", "group": "g", "job_type": "baseline", "tags": "[a, b]", "notes": "first try"}
    options = [f"--tracking.{key}={value}" for key, value in named.items()]
    arguments = small(*TRACKED, *options, "--tracking.log_model=true", "--train.resume=true", "--train.log_every=5")
    lose_power(arguments, 20)
    summary = fresh_train(load_config(arguments))
    first, second = offline_runs(tmp_path / "run")
    for start in (first, second):
        run = start.run
        assert (run.project, run.display_name, run.run_group, run.job_type) == ("p", "trial", "g", "baseline")
        assert (list(run.tags), run.notes) == (["a", "b"], "first try")
        assert start.config["train"]["precision"] == "fp32"
        assert start.config["data"]["subset"] is None, "text files have none"
        names = "ranks device parameters vocab_size data_fingerprint git_commit git_dirty versions"
        assert set(names.split()) <= start.config.keys()
        assert all("tokens" in line for line in start.history)
    assert first.run.run_id == second.run.run_id
    assert [start.config["resume_count"] for start in (first, second)] == [0, 1]
    assert [start.exit_code for start in (first, second)] == [1, 0]

    # The same lines as in metrics.jsonl: a start's own, those after the last checkpoint twice.
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = [line for line in first.history + second.history if "train/loss" in line]
    assert [line["step"] for line in told] == [5, 10, 15, 20, 15, 20, 25, 30]
    written = {line["step"]: line for line in lines if "train/loss" in line}
    for line in told[4:]:
        assert {key: line[key] for key in written[line["step"]]} == written[line["step"]]
    assert lines[-1]["final/valid_ppl"] == summary["valid"]["ppl"]

    # The samples' table grows: each line adds the new rows only.
    samples = [line for line in first.history + second.history if "samples.path" in line]
    assert [line["samples.log_mode"] for line in samples] == ["INCREMENTAL"] * 3
    texts = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["tokens"]) for line in texts] == [
        (line["step"], line["epoch"], line["tokens"]) for line in lines if "valid/ppl" in line
    ]
    table = json.loads((second.folder / "files" / samples[-1]["samples.path"]).read_bytes())
    assert table["data"] == [[texts[-1]["tokens"], text] for text in texts[-1]["texts"]]

    # The last perplexity beside the lowest, and each best model as a version.
    valid = [line["valid/ppl"] for line in lines if "valid/ppl" in line]
    assert second.summary["valid/ppl"] == {"last": valid[-1], "min": valid[-1]}
    models = [record for start in (first, second) for record in start.all("artifact") if record.type == "model"]
    versions = [set(model.aliases) - {"best", "latest"} for model in models]
    assert versions == [{"step-15"}, {"step-15"}, {"step-30"}]
    assert all("best" in model.aliases for model in models)
    assert {content.path for content in models[0].manifest.contents} >= {"config.json", "model.safetensors"}


def test_every_key_is_documented(small: Small, tmp_path: Path) -> None:
    fresh_train(load_config(small("--train.max_steps=2")))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`([\w/]+)`", row)}
    assert {key for line in lines for key in json.loads(line)} == documented - {"memory/gpu"}


@pytest.mark.parametrize(
    ("number", "preempted", "scoring"),
    [(signal.SIGTERM, True, False), (signal.SIGUSR1, True, False), (signal.SIGINT, False, False), (signal.SIGTERM, True, True)],
)
def test_a_stopped_run_has_its_exit_code(number: int, preempted: bool, scoring: bool, small: Small, tmp_path: Path) -> None:
    """Stopped at a step, or in the final scoring, where a signal ends the process as Ctrl-C does."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if scoring:
            monkeypatch.setattr(Run, "_final_figures", Mock(side_effect=KeyboardInterrupt(number)))
            with pytest.raises(KeyboardInterrupt):
                train(load_config(small(*TRACKED, "--train.max_steps=2")))
        else:
            at_step(monkeypatch, 5, lambda step: signal.raise_signal(number))
            assert train(load_config(small(*TRACKED))).signal == number
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 128 + number
    assert bool(run.all("preempting")) == preempted, "a sweep would start it again"


def test_a_failed_run_is_told_and_never_saved_and_the_next_one_is_another(small: Small, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        at_step(monkeypatch, 11, lambda step: step.model.decoder.bias.data.fill_(float("inf")))
        with pytest.raises(UserError, match="not finite at step 12"):
            train(load_config(small(*TRACKED, "--train.log_every=100", run="a")))
    assert [path.name for path in (tmp_path / "a/checkpoints").iterdir()] == ["step_00000007"]
    assert not (tmp_path / "a/summary.json").exists()
    fresh_train(load_config(small(*TRACKED, "--train.max_steps=3", run="b")))
    (a,), (b,) = offline_runs(tmp_path / "a"), offline_runs(tmp_path / "b")
    (alert,) = a.all("alert")
    assert alert.level == "ERROR"
    assert "not finite at step 12" in alert.text
    assert (a.exit_code, b.exit_code) == (1, 0)
    assert a.run.run_id != b.run.run_id
    assert [line["step"] for line in b.history if "train/loss" in line] == [1, 2, 3]


def test_the_environment_names_what_the_configuration_leaves_open(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"MODE": "offline", "PROJECT": "from-environment", "NAME": "named", "TAGS": "x,y", "RUN_GROUP": "group", "RUN_ID": "chosen12"}
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    once = ("--tracking.trackers=[wandb]", "--train.max_steps=1")
    fresh_train(load_config(small(*once, run="a")))
    wandb.teardown()
    fresh_train(load_config(small(*once, "--tracking.project=p", "--tracking.run_name=n", "--tracking.tags=[t]", run="b")))
    (a,), (b,) = offline_runs(tmp_path / "a"), offline_runs(tmp_path / "b")
    assert (a.run.project, a.run.display_name, list(a.run.tags)) == ("from-environment", "named", ["x", "y"])
    assert (a.run.run_group, a.run.run_id) == ("group", "chosen12")
    assert (b.run.project, b.run.display_name, list(b.run.tags)) == ("p", "n", ["t"])


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


requests: list[str] = []  # to the server below


@pytest.fixture
def refusing() -> Iterator[str]:
    requests.clear()

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "invalid key"}]}')

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("server", ["black_hole", "refusing", None])
def test_auto_logs_offline_where_w_and_b_cannot_be_used(
    server: str | None,
    request: pytest.FixtureRequest,
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of this machine's user
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    wandb.teardown()
    if server == "black_hole":
        monkeypatch.setattr(tracking, "LOGIN_SECONDS", 0.5)
    fresh_train(load_config(small("--tracking.trackers=[wandb]", "--train.max_steps=2")))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nothing is sent" in line]
    told = {"black_hole": "W&B does not answer within 0.5 s", "refusing": "W&B does not answer or refuses the key"}
    assert line.startswith(told.get(server or "", "no W&B key found"))
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 0


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_nothing_is_sent_means_nothing(mode: str, small: Small, refusing: str, tmp_path: Path) -> None:
    """Offline, W&B of itself sends figures of its own use."""
    environment = {**os.environ, "WANDB_BASE_URL": refusing, "HOME": str(tmp_path), "NETRC": str(tmp_path / "absent")}
    arguments = small("--tracking.trackers=[wandb]", f"--tracking.mode={mode}", "--train.epochs=1")
    subprocess.run([sys.executable, "-m", "lstmlm", "train", *arguments], env=environment, timeout=200, check=True)
    assert offline_runs(tmp_path / "run")
    assert requests == []


def test_the_mode_of_a_run_is_not_that_of_the_process(
    small: Small, refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a key, then one with a key, which is looked at."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    monkeypatch.setenv("WANDB_BASE_URL", refusing)
    wandb.teardown()
    fresh_train(load_config(small("--tracking.trackers=[wandb]", "--train.max_steps=1", run="a")))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    fresh_train(load_config(small("--tracking.trackers=[wandb]", "--train.max_steps=1", run="b")))
    first, second = [line for line in capsys.readouterr().err.splitlines() if "nothing is sent" in line]
    assert first.startswith("no W&B key found")
    assert second.startswith("W&B does not answer or refuses the key")


@pytest.mark.parametrize("project", ["a/b", ".."])
def test_tensorboard_does_not_leave_the_run_directory(project: str, small: Small, tmp_path: Path) -> None:
    arguments = small("--tracking.trackers=[tensorboard]", f"--tracking.project={project}", "--train.max_steps=1")
    with pytest.raises(UserError, match=r"TensorBoard makes a folder of tracking\.project, [^\n]*: give it a name without /"):
        train(load_config(arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_w_and_b_that_does_not_let_a_run_start(
    mode: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After its key was taken. Under auto the run goes on with its other trackers."""
    monkeypatch.setattr(tracking, "_problem_online", lambda: None)
    monkeypatch.setattr(wandb, "init", Mock(side_effect=ConnectionError("503 Service Unavailable")))
    config = load_config(small("--tracking.trackers=[wandb, tensorboard]", f"--tracking.mode={mode}", "--train.max_steps=2"))
    if mode == "online":
        with pytest.raises(UserError, match=r"cannot start the trackers .*503"):
            fresh_train(config)
        return
    fresh_train(config)
    assert "503 Service Unavailable; the run goes on without W&B, and metrics.jsonl has everything" in capsys.readouterr().err
    assert list((tmp_path / "run/tensorboard").rglob("events.*"))


def test_a_tracker_that_fails_does_not_end_the_run(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb.Run, "log", Mock(side_effect=ConnectionError("no\nroute")))
    fresh_train(load_config(small(*TRACKED, "--train.max_steps=3")))
    assert "warning: wandb failed: no route\n" in capsys.readouterr().err


def test_trackers_that_cannot_start_are_named_and_leave_none_running(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import TensorBoardTracker

    config = load_config(small("--tracking.trackers=[wandb, tensorboard, trackio]", "--tracking.mode=offline"))
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "find_spec", lambda name: None if name != "wandb" else name)
        with pytest.raises(UserError, match=r"not installed: tensorboard, trackio; pip install 'lstmlm.tensorboard,trackio.'"):
            train(config)
    monkeypatch.setattr(TensorBoardTracker, "start", Mock(side_effect=OSError("no room")))
    with pytest.raises(UserError, match=r"cannot start the trackers .*no room"):
        fresh_train(config)
    assert wandb.run is None


def test_several_trackers_at_once(small: Small, cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Through the command line, as trackio reads its environment when it is imported."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = small("--tracking.trackers=[trackio, tensorboard, wandb]", "--train.resume=true", "--train.max_steps=3")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    for steps in ("2", "3"):  # grown: the same run again
        result = cli("train", *arguments, f"--train.max_steps={steps}", env=environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "", "results only"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    losses = [line["train/loss"] for line in lines]
    events = EventAccumulator(str(tmp_path / "run/tensorboard/lstmlm"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(line["tokens"], pytest.approx(line["train/loss"])) for line in lines]
    assert b"model.hidden_size" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    texts = json.loads((tmp_path / "run/samples.jsonl").read_text().splitlines()[-1])["texts"]
    assert events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode() == "\n\n".join(texts)
    assert len(offline_runs(tmp_path / "run")) == 2
    with sqlite3.connect(tmp_path / "trackio/lstmlm.db") as database:
        rows = list(database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"))
    told = [(name, step, json.loads(values)) for name, step, values in rows]
    assert len({name for name, _, _ in told}) == 1, "one run over both starts"
    assert [values["train/loss"] for _, _, values in told if "train/loss" in values] == losses
    assert all(step == values["tokens"] for _, step, values in told)


def test_the_end_of_w_and_b_s_service_is_not_that_of_the_run(small: Small, tmp_path: Path) -> None:
    """A scheduler ends every process of a job, this one too. In a process whose imports are still to come."""
    code = """
import sys
import psutil
from lstmlm import load_config, train
from lstmlm.training.step import TrainStep
call = TrainStep.__call__
def killing(self, window, *, step, **numbers):
    if step == 5:
        (service,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
        service.kill()
    call(self, window, step=step, **numbers)
TrainStep.__call__ = killing
train(load_config(sys.argv[1:]))
"""
    arguments = small("--tracking.trackers=[wandb]", "--tracking.mode=offline", "--train.epochs=1")
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert "warning: wandb failed" in result.stderr
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/summary.json").exists()
