"""A dry run tells what a run needs, and writes no run."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from lstmlm import UserError, load_config, train
from lstmlm.files import locked
from lstmlm.training import dry_run, tracking
from tests.helpers import Small, fresh_train, metrics


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_nothing_is_written_but_to_the_cache(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outcome = train(load_config(small("--train.dry_run=true")))
    cache = tmp_path / "cache"
    assert {*tmp_path.rglob("*")} - {*cache.rglob("*")} == {cache, tmp_path / "here"}
    assert outcome.run_dir == tmp_path / "run"
    told = capsys.readouterr().err.splitlines()
    assert told[-1].split(None, 1) == ["result", "a run can start; nothing was written but to the caches of its data"]
    assert sum(line.startswith(("data ", "model ", "time ", "memory ", "disk ")) for line in told) >= 5
    ids = {path: path.stat().st_mtime_ns for path in cache.glob("*.tokens")}
    fresh_train(load_config(small("--train.max_steps=1")))
    assert ids == {path: path.stat().st_mtime_ns for path in cache.glob("*.tokens")} != {}, "the run has them already"


def test_it_does_the_first_step_and_tells_the_sizes_of_the_files(small: Small, tmp_path: Path) -> None:
    figures = fresh_train(load_config(small("--train.dry_run=true")))
    fresh_train(load_config(small("--train.max_steps=1")))
    assert figures["train/loss"] == metrics(tmp_path / "run")[0]["train/loss"]
    header = 10_000  # of safetensors, and the small JSON files
    checkpoint = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step_00000001").iterdir())
    assert figures["disk/checkpoint"] <= checkpoint <= figures["disk/checkpoint"] + header
    model = sum(path.stat().st_size for path in (tmp_path / "run/model").iterdir())
    assert figures["disk/model"] <= model <= figures["disk/model"] + header
    weights = sum(tensor.nbytes for tensor in safetensors.torch.load_file(tmp_path / "run/model/model.safetensors").values())
    kept = 3 * figures["disk/checkpoint"] + figures["disk/model"]  # two stay, one is written
    assert figures["disk/needed"] == kept + 2 * weights, "best.safetensors, and either while it is replaced"
    assert figures["memory/host"] > 50e6
    parts = 30 * figures["time/step"], 2 * figures["time/validation"], figures["time/scoring"]
    assert figures["time/total"] == pytest.approx(sum(parts)) and min(parts) > 0


def test_what_would_stop_a_run_is_told(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh_train(load_config(small("--train.max_steps=1")))
    with pytest.raises(UserError, match="holds a run already"):
        fresh_train(load_config(small("--train.dry_run=true")))
    with locked(tmp_path / "run/.lock", wait=False), pytest.raises(UserError, match="another process is training in"):
        fresh_train(load_config(small("--train.dry_run=true", "--train.resume=true")))
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="not installed: tensorboard"):
            fresh_train(load_config(small("--train.dry_run=true", "--train.resume=true", "--tracking.trackers=[tensorboard]")))
    finished = fresh_train(load_config(small("--train.dry_run=true", "--train.resume=true")))
    assert finished == json.loads((tmp_path / "run/summary.json").read_bytes())
    assert "is finished already" in capsys.readouterr().err
    assert "time/total" in fresh_train(load_config(small("--train.dry_run=true", "--train.resume=true", "--train.max_steps=2")))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.batch_size is 100000"):
        fresh_train(load_config(small("--train.dry_run=true", "--data.batch_size=100000")))


def test_a_resume_that_is_refused(small: Small, text_folder: Path, tmp_path: Path) -> None:
    """By a run as by its dry run, which writes nothing at all."""
    fresh_train(load_config(small("--train.max_steps=1")))
    before = snapshot(tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(text_folder, other)
    (other / "test.txt").write_text("w1 w2\n")
    for dry in ("true", "false"):
        arguments = small("--train.max_steps=9", "--train.resume=true", f"--train.dry_run={dry}")
        with pytest.raises(UserError, match=r"cannot resume: optim\.lr was 0\.005 and is 0\.1 now"):
            fresh_train(load_config([*arguments, "--optim.lr=0.1"]))
        with pytest.raises(UserError, match="cannot resume: the data or its vocabulary differ"):
            fresh_train(load_config([*arguments, f"--data.dataset={other}"]))
        if dry == "true":
            assert snapshot(tmp_path / "run") == before


def test_a_place_that_cannot_hold_the_run_is_told(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/run: .*file is not a folder"):
        fresh_train(load_config(small("--train.dry_run=true", run="file/run")))
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(UserError, match="is not writable"):
            fresh_train(load_config(small("--train.dry_run=true")))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"the run needs .* of disk in .*, and 0\.00 MB are free"):
        fresh_train(load_config(small("--train.dry_run=true")))


def test_the_memory_told_is_that_of_a_save_too(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save, peak = safetensors.torch.save, dry_run.peak_memory
    monkeypatch.setattr(safetensors.torch, "save", lambda tensors: saved.append(len(save(tensors))))
    at_peak: list[int] = []
    monkeypatch.setattr(dry_run, "peak_memory", lambda device: (at_peak.extend(saved), peak(device))[1])
    figures = fresh_train(load_config(small("--train.dry_run=true")))
    assert len(at_peak) == 1
    assert at_peak[0] >= figures["disk/checkpoint"]
