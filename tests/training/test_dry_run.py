"""A dry run tells what a run needs, and leaves no trace."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm import UserError, load_config, train
from tests.training.test_loop import fresh_train, metrics

pytestmark = pytest.mark.system  # whole runs


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_written_anywhere(
    cached: bool,
    small: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if cached:
        fresh_train(load_config(small("--train.max_steps=1", run="other")))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    before = snapshot(tmp_path)
    outcome = train(load_config(small("--train.dry_run=true")))
    for folder in (tmp_path / "temporary").glob("torchinductor_*"):  # torch's own, where it was not loaded before
        folder.rmdir()
    after = snapshot(tmp_path)
    temporary = tmp_path / "temporary"
    assert after.pop(temporary)[0] > before.pop(temporary)[0], "where the ids were for a while"
    assert after == before
    assert outcome.run_dir == tmp_path / "run"
    told = capsys.readouterr().err.splitlines()
    assert told[-1].split(None, 1) == ["result", "a run can start; nothing was written"]
    assert sum(line.startswith(("data ", "model ", "memory ", "disk ")) for line in told) >= 4


def test_it_does_the_first_step_and_tells_the_sizes_of_the_files(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    figures = fresh_train(load_config(small("--train.dry_run=true")))
    fresh_train(load_config(small("--train.max_steps=1")))
    assert figures["train/loss"] == metrics(tmp_path / "run")[0]["train/loss"]
    header = 10_000  # of safetensors, and the small JSON files
    checkpoint = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step_00000001").iterdir())
    assert figures["disk/checkpoint"] <= checkpoint <= figures["disk/checkpoint"] + header
    model = sum(path.stat().st_size for path in (tmp_path / "run/model").iterdir())
    assert figures["disk/model"] <= model <= figures["disk/model"] + header
    assert figures["disk/needed"] == 3 * figures["disk/checkpoint"] + figures["disk/model"], "two stay, one is written"
    assert figures["memory/host"] > 50e6


def test_what_would_stop_a_run_is_told(small: Callable[..., list[str]], tmp_path: Path) -> None:
    fresh_train(load_config(small("--train.max_steps=1")))
    with pytest.raises(UserError, match="holds a run already"):
        fresh_train(load_config(small("--train.dry_run=true")))
    fresh_train(load_config(small("--train.dry_run=true", "--train.resume=true")))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.batch_size is 100000"):
        fresh_train(load_config(small("--train.dry_run=true", "--data.batch_size=100000")))


def test_what_a_killed_preparation_left_in_the_cache_stays(small: Callable[..., list[str]], tmp_path: Path) -> None:
    config = load_config(small("--train.dry_run=true"))
    fresh_train(load_config(small("--train.max_steps=1", run="other")))
    left = []
    for tokens in (tmp_path / "cache").glob("*.tokens"):
        left.append(tokens.with_suffix(".tmp"))
        left[-1].write_bytes(b"half")
        tokens.unlink()
    assert left
    fresh_train(config)
    assert {path.read_bytes() for path in left} == {b"half"}
