"""What W&B is told, with its `init` replaced: one run over any number of starts, `tokens` as the axis."""

from collections.abc import Callable
from typing import Any

import pytest
import wandb

from lstmlm import load_config
from tests.training.test_loop import PowerCutError, cut_power_at, fresh_train


class FakeRun:
    """Keeps what it is told."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.metrics: dict[str, dict[str, Any]] = {}
        self.logged: list[dict[str, Any]] = []
        self.steps: list[int | None] = []
        self.name = arguments["name"]

    def define_metric(self, name: str, **arguments: Any) -> None:
        self.metrics[name] = arguments

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append(values)
        self.steps.append(step)

    def finish(self) -> None:
        pass


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    started: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        started.append(FakeRun(arguments))
        return started[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "login", lambda **arguments: arguments["prompt"])  # False: no key, and no prompt
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return started


TRACKED = ("--tracking.trackers=[wandb]", "--tracking.group=g", "--tracking.tags=[a, b]", "--tracking.project=p")


def test_one_run_over_two_starts(
    small: Callable[..., list[str]], runs: list[FakeRun], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = small(*TRACKED, "--tracking.run_name=trial", "--train.resume=true", "--train.log_every=5")
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut_power_at(monkeypatch, 20)
        with pytest.raises(PowerCutError):
            fresh_train(load_config(arguments))
    fresh_train(load_config(arguments))
    assert capsys.readouterr().err.count("no W&B key found: logging offline") == 2
    first, second = runs
    for run in runs:
        told = run.arguments
        assert (told["project"], told["name"], told["group"], told["tags"]) == ("p", "trial", "g", ["a", "b"])
        assert (told["resume"], told["mode"]) == ("allow", "offline")
        assert told["config"]["train"]["precision"] == "fp32"
        assert {"ranks", "device", "parameters", "git_commit", "vocab_size", "versions"} <= told["config"].keys()
        assert run.metrics["*"] == {"step_metric": "tokens"}
        assert run.metrics["valid/ppl"] == {"step_metric": "tokens", "summary": "min"}
        assert set(run.steps) == {None}, "W&B would drop a step that goes back"
        assert all("tokens" in values for values in run.logged)
    assert first.arguments["id"] == second.arguments["id"]
    assert [run.arguments["config"]["resume_count"] for run in runs] == [0, 1]
    assert any("samples" in values for values in first.logged)
    assert any("test/ppl" in values for values in second.logged)


def test_a_tracker_that_fails_does_not_end_the_run(
    small: Callable[..., list[str]],
    runs: list[FakeRun],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: FakeRun, values: dict[str, Any], step: int | None = None) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(FakeRun, "log", fail)
    fresh_train(load_config(small(*TRACKED, "--train.max_steps=3")))
    assert "warning: wandb did not take the metrics: no route" in capsys.readouterr().err


def test_a_finished_run_starts_no_tracker(small: Callable[..., list[str]], runs: list[FakeRun]) -> None:
    fresh_train(load_config(small(*TRACKED, "--train.max_steps=3")))
    fresh_train(load_config(small(*TRACKED, "--train.max_steps=3", "--train.resume=true")))
    assert len(runs) == 1
