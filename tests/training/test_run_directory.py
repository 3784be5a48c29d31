"""A run's directory: who holds it, what is refused, and that this is known before anything expensive."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmlm import UserError, load_config
from lstmlm.training import loop
from lstmlm.training.run_directory import RunDirectory
from tests.training.test_loop import fresh_train


def try_to_hold(path: Path, outcome: Any) -> None:
    try:
        with RunDirectory(path).held():
            outcome.put("held")
    except UserError as error:
        outcome.put(str(error))


def in_another_process(path: Path) -> str:
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    process = context.Process(target=try_to_hold, args=(path, outcome))
    process.start()
    process.join(30)
    return str(outcome.get())


def test_one_process_holds_it(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").held():
        assert "another process is training in" in in_another_process(tmp_path / "run")
    assert in_another_process(tmp_path / "run") == "held", "what is let go of can be taken"
    with RunDirectory(tmp_path / "run").held():
        pass  # and the other process, which has ended, keeps nothing


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), RunDirectory(tmp_path / "run").held():
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.fixture
def nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a token was read or a model was built")

    monkeypatch.setattr(loop, "load_corpus", refused)
    monkeypatch.setattr(loop, "LSTMLanguageModel", refused)


def test_a_finished_run_answers_before_anything_expensive(
    small: Callable[..., list[str]], request: pytest.FixtureRequest
) -> None:
    summary = fresh_train(load_config(small()))
    request.getfixturevalue("nothing_expensive")
    assert fresh_train(load_config(small("--train.resume=true"))) == summary
    with pytest.raises(UserError, match="holds a run already"):
        fresh_train(load_config(small()))


@pytest.mark.usefixtures("nothing_expensive")
def test_a_busy_run_answers_before_anything_expensive(small: Callable[..., list[str]], tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").held(),
        pytest.raises(UserError, match="another process is training in"),
    ):
        fresh_train(load_config(small("--train.resume=true")))


def test_a_start_that_fails_leaves_no_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data"), RunDirectory(tmp_path / "runs/a").held():
        raise UserError("no data")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with RunDirectory(tmp_path / "runs/a").held():
        (tmp_path / "runs/a/metrics.jsonl").touch()
    assert (tmp_path / "runs/a/metrics.jsonl").exists()
    with RunDirectory(tmp_path / "runs/b").held():
        pass
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"], "a folder that was there before stays"
