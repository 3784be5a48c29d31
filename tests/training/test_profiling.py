"""A profile is written, and changes nothing that a run computes."""

import json
from pathlib import Path

import pytest

from lstmlm import load_config
from tests.helpers import Small, assert_same_run, fresh_train


def names_in_trace(run: Path) -> list[str]:
    """Of what took time."""
    events = json.loads((run / "profile/trace.json").read_bytes())["traceEvents"]
    return [event["name"] for event in events if event.get("ph") == "X"]


def test_a_profiled_run_is_the_same_run(small: Small, tmp_path: Path) -> None:
    fresh_train(load_config(small(run="plain")))
    fresh_train(load_config(small("--train.profile=3", run="run")))
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    assert {path.name for path in (tmp_path / "run/profile").iterdir()} == {"trace.json", "table.txt"}
    names = names_in_trace(tmp_path / "run")
    assert sorted(name for name in names if name.startswith("ProfilerStep#")) == [f"ProfilerStep#{n}" for n in (10, 11, 12)]
    assert sum("Adam.step" in name for name in names) == 3
    table = (tmp_path / "run/profile/table.txt").read_text()
    assert len([line for line in table.splitlines() if "::" in line]) <= 10
    assert "Self CPU %" in table


def test_a_profile_ends_with_the_last_step_and_says_what_is_missing(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh_train(load_config(small("--train.max_steps=12", "--train.profile=100")))
    told = capsys.readouterr().err
    assert "warning: train.profile asks for 100 steps after the first 10, but 2 were profiled" in told
    names = names_in_trace(tmp_path / "run")
    assert {name for name in names if name.startswith("ProfilerStep#")} == {"ProfilerStep#10", "ProfilerStep#11"}
    assert sum("Adam.step" in name for name in names) == 2
    assert names.count("aten::embedding") == 2, "two steps, no validation, no scoring"
    assert (tmp_path / "run/profile/table.txt").exists()
    fresh_train(load_config(small("--train.max_steps=10", "--train.profile=3", run="short")))
    assert "but 0 were profiled" in capsys.readouterr().err
    assert not (tmp_path / "short/profile").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/profile").write_text("in the way")
    summary = fresh_train(load_config(small("--train.max_steps=12", "--train.profile=1", run="full")))
    assert summary["step"] == 12
    assert "warning: no profile" in capsys.readouterr().err
