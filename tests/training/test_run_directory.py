"""A run's directory: who holds it, what is refused, and that this is known before anything expensive."""

import errno
from pathlib import Path
from typing import IO, Any
from unittest.mock import Mock

import pytest

from lstmlm import UserError, files, load_config
from lstmlm.training import build, run_directory
from lstmlm.training.run_directory import RunDirectory
from tests.helpers import Small, fresh_train


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"cannot lock .*symbolic links"), RunDirectory(tmp_path / "run").held():
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_a_link_in_the_place_of_a_runs_file_is_refused(small: Small, tmp_path: Path) -> None:
    """Somebody else's run may have them: what goes on with it would write to files of this machine."""
    fresh_train(load_config(small("--train.max_steps=2")))
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "model"):
        path, precious = tmp_path / "run" / name, tmp_path / "precious"
        path.rename(precious)
        path.symlink_to(precious)
        before = {each: each.read_bytes() for each in (precious, *precious.glob("*")) if each.is_file()}
        with pytest.raises(UserError, match=rf"run/{name} is a link, and a run writes through none"):
            fresh_train(load_config(small("--train.max_steps=3", "--train.resume=true")))
        assert {each: each.read_bytes() for each in before} == before
        path.unlink()
        precious.rename(path)
    fresh_train(load_config(small("--train.max_steps=3", "--train.resume=true")))


@pytest.fixture
def nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Mock(side_effect=AssertionError("a token was read or a model was built"))
    monkeypatch.setattr(build, "load_corpus", refused)
    monkeypatch.setattr(build, "LSTMLanguageModel", refused)


def test_a_finished_run_answers_before_anything_expensive_and_stays(
    small: Small, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files_and_times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}

    summary = fresh_train(load_config(small("--train.max_steps=2")))
    request.getfixturevalue("nothing_expensive")
    before = files_and_times()
    assert fresh_train(load_config(small("--train.max_steps=2", "--train.resume=true"))) == summary
    assert "is finished already" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a run already"):
        fresh_train(load_config(small()))
    assert files_and_times() == before


@pytest.mark.usefixtures("nothing_expensive")
def test_a_busy_run_answers_before_anything_expensive(small: Small, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").held(), pytest.raises(UserError, match="another process is training in"):
        fresh_train(load_config(small("--train.resume=true")))


def test_a_file_in_the_place_of_a_run_is_told(small: Small, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=r"^cannot write \S+/run: something of this name is there already$"):
        fresh_train(load_config(small()))
    assert (tmp_path / "run").read_text() == "mine"


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


CONTENT = {
    "metrics.jsonl": "my own figures",
    "model/README.md": "my own model",
    "checkpoints/step_00000003/notes": "my own",
    "summary.json": "{}",
    "config.yaml": "learning_rate: 3",
}


@pytest.mark.usefixtures("nothing_expensive")
@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("resume", ["true", "false"])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(name: str, resume: str, small: Small, tmp_path: Path) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text(CONTENT[name])
    with pytest.raises(UserError) as caught:
        fresh_train(load_config(small(f"--train.resume={resume}")))
    assert path.read_text() == CONTENT[name]
    assert [each for each in (tmp_path / "run").rglob("*") if each.is_file()] == [path]
    assert "--train.resume true" not in str(caught.value), "which would be the wrong advice"
    assert "\n" not in str(caught.value)


def test_runs_of_one_second_have_folders_of_their_own(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Noon(run_directory.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, 12)

    monkeypatch.setattr(run_directory, "datetime", Noon)
    for _ in range(2):
        fresh_train(load_config(small("--train.run_dir=null", "--tracking.run_name=a", "--train.max_steps=1")))
    assert [path.parent.name for path in sorted(Path("runs").glob("*/summary.json"))] == ["20260101-120000-a", "20260101-120000-a-2"]


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_lock_that_its_last_holder_deleted_is_made_anew(folder_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, calls = tmp_path / "run" / ".lock", files.fcntl.flock, []
    path.parent.mkdir()

    def deleted_before(file: IO[str], operation: int) -> None:
        if not calls:
            path.unlink()
            if folder_too:
                path.parent.rmdir()
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", deleted_before)
    with pytest.raises(FileNotFoundError if folder_too else BlockingIOError), files.locked(path, wait=False):
        assert path.exists()
        with files.locked(path, wait=False):
            pass


def test_a_file_system_without_flock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    told = r"cannot lock .*\.lock: No locks available; train.run_dir must be on a file system with flock"
    with pytest.raises(UserError, match=told), RunDirectory(tmp_path / "run").held():
        pass
