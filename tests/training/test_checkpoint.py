"""A checkpoint exists whole or not at all: a save is killed, or refused by the disk, at each of its operations."""

import errno
import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import Config, UserError
from lstmlm.training import checkpoint
from lstmlm.training.cursor import Cursor, Interval

OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir", "close")


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((50, 3), float(step)), "count": torch.tensor(step)}


def publish(folder: Path, step: int, keep: int = 1) -> None:
    checkpoint.publish(folder, step, tensors(step), values(step), keep)


def values(step: int) -> dict[str, Any]:
    return {
        "config": Config().to_dict(),
        "data_fingerprint": "f" * 64,
        "cursor": {"step": step},
        "interval": {},
        "tracking": {"run_id": "a", "resume_count": 0, "metrics_bytes": 0},
        "versions": {},
    }


def newest_step(folder: Path) -> int:
    path, saved = next(checkpoint.whole(folder))
    assert torch.equal(checkpoint.load_tensors(path)["weight"], tensors(saved.cursor.step)["weight"])
    return saved.cursor.step


def inject(fault: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Have every file operation of this process go through `fault` first."""
    for name in OPERATIONS:
        original = getattr(os, name)

        def patched(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            fault(_name, args)
            return _original(*args, **kwargs)

        setattr(os, name, patched)


NO_FAULT = 8  # exit status of a save that has no operation of such a number


def save_with_a_fault(folder: Path, victim: int, fault: Callable[[str, tuple[Any, ...]], None], step: int = 3) -> int:
    """Exit status, 7 where it is refused in one line, of a save of step 3, which also prunes, after one of step 2; its operation
    number `victim` goes through `fault`. Or of step 2 again, as of a run that owed its last validation."""
    shutil.rmtree(folder)
    publish(folder, 2)
    numbers = itertools.count()
    pid = os.fork()
    if pid == 0:
        try:
            inject(lambda name, args: fault(name, args) if next(numbers) == victim else None)
            publish(folder, step)
        except UserError:
            os._exit(7)
        except BaseException:
            os._exit(9)
        os._exit(NO_FAULT if next(numbers) <= victim else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("half", "step"), [(False, 3), (True, 3), (False, 2)])
def test_killed_at_every_operation(tmp_path: Path, half: bool, step: int) -> None:
    def killed(name: str, args: tuple[Any, ...]) -> None:
        if half and name == "write":
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    for victim in itertools.count():
        status = save_with_a_fault(tmp_path, victim, killed, step)
        if status == NO_FAULT:
            break
        assert status == -signal.SIGKILL
        checkpoint.restore(tmp_path)  # as every start does
        assert newest_step(tmp_path) in (2, 3), f"killed at operation {victim}"
        publish(tmp_path, 4)
        assert newest_step(tmp_path) == 4
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"], "what was left behind is swept away"
    assert victim > 20, "three files, two folders, a rename and a deletion take as many"


@pytest.mark.parametrize(("code", "step"), [(errno.ENOSPC, 3), (errno.EACCES, 3), (errno.ENOSPC, 2)])
def test_refused_at_every_operation(tmp_path: Path, code: int, step: int) -> None:
    def refused(name: str, args: tuple[Any, ...]) -> None:
        if name != "close":
            raise OSError(code, os.strerror(code))

    statuses = []
    while NO_FAULT not in statuses:
        statuses.append(save_with_a_fault(tmp_path, len(statuses), refused, step))
        assert statuses[-1] in (0, 7, NO_FAULT), f"operation {len(statuses)}"
        assert newest_step(tmp_path) in (2, 3)
        assert not any(path.name.endswith(".tmp") for path in tmp_path.iterdir()), "the temporary folder is gone"
        publish(tmp_path, 4)
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"], "what could not be deleted then is deleted now"
    assert statuses.count(7) >= 8


def test_what_a_power_cut_needs_is_on_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 1)
    done = []
    for name in ("fsync", "rename"):
        original = getattr(os, name)

        def seen(place: Any, *args: Any, _name: str = name, _original: Any = original) -> Any:
            if _name == "fsync":
                path = next(p for p in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(p.stat(), os.fstat(place)))
            else:
                path = Path(place)
            done.append(f"{_name} {path.name}")
            return _original(place, *args)

        monkeypatch.setattr(os, name, seen)
    publish(tmp_path, 2)
    new = ".step_00000002.tmp"
    files = [f"fsync {name}" for name in ("state.safetensors", "state.json", "manifest.json")]
    assert done == [*files, f"fsync {new}", f"rename {new}", f"fsync {tmp_path.name}", "rename step_00000001"]


def test_prunes_to_the_newest(tmp_path: Path) -> None:
    """In a save; and, where a killed one has left one too many, when the run goes on."""
    for step in range(1, 6):
        publish(tmp_path, step, keep=4)
    names = ["step_00000005", "step_00000004", "step_00000003", "step_00000002"]
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == names
    checkpoint.prune(tmp_path / "step_00000004", keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == names[:3], "a later one is not its business"


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flip": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "cut": lambda content: content[:-9],
    "gone": lambda content: None,
    "other": lambda content: b'{"state.json": 3}',
}


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path, 1, keep=2)
    publish(tmp_path, 2, keep=2)
    path = tmp_path / "step_00000002" / name
    content = DAMAGES[damage](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert newest_step(tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipping the damaged checkpoint {tmp_path / 'step_00000002'}: ")
    assert (name if damage != "flip" else "state.") in line  # a digit of a checksum may be what was flipped
    publish(tmp_path, 2, keep=2)
    assert newest_step(tmp_path) == 2, "the same step again takes the damaged one's place"


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server in trouble must not cost the newest checkpoint."""
    for step in (1, 2):
        publish(tmp_path, step, keep=2)
    for call in ("open", "stat"):
        real = getattr(os, call)

        def troubled(path: Any, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
            if str(path).endswith(f"step_00000002/{name}"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return _real(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, troubled)
            with pytest.raises(UserError, match=r"cannot read .*: Input/output error; the checkpoint may be whole: start again"):
                newest_step(tmp_path)
    assert newest_step(tmp_path) == 2


def test_a_damaged_newer_checkpoint_does_not_cost_the_good_one(tmp_path: Path) -> None:
    for step in (6, 8):
        publish(tmp_path, step, keep=2)
    (tmp_path / "step_00000008" / "state.json").write_text("")
    publish(tmp_path, 7, keep=1)
    assert newest_step(tmp_path) == 7
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000007"]


def test_values_and_tensors_come_back_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From three files, the manifest the last of them, and no pickle."""
    order: list[str] = []
    write_file = checkpoint.write_file
    monkeypatch.setattr(checkpoint, "write_file", lambda path, content: order.append(path.name) or write_file(path, content))
    cursor = {"best": 0.1 + 0.2, "step": 1, "tokens": 2**53 + 1}
    exact = {"a": torch.randn(3, 5), "b": torch.tensor([0.0, -0.0, 1e-45]), "c": torch.tensor(7)}
    checkpoint.publish(tmp_path, 1, exact, values(1) | {"cursor": cursor}, 1)
    path, saved = next(checkpoint.whole(tmp_path))
    assert saved == checkpoint.Saved(Config(), "f" * 64, Cursor(**cursor), Interval(), checkpoint.Logged("a", 0, 0), {})
    loaded = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.load_tensors(path).items()}
    assert loaded == {name: tensor.numpy().tobytes() for name, tensor in exact.items()}
    assert order == ["state.safetensors", "state.json", "manifest.json"]
    assert {file.name for file in path.iterdir()} == {*order}


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("cursor", "step", "2", "cursor.step: "),
        ("cursor", "ghost", 1, "cursor.ghost: "),
        ("config", "data", {"bptt": 0}, "data.bptt must be at least 1 and "),
        ("config", "model", None, "config.model: "),
        ("tracking", "run_id", 1, "tracking.run_id: "),
        ("versions", "torch", 2, "versions.torch: "),
    ],
)
def test_what_fits_its_manifest_but_is_no_state_is_damaged(
    section: str, key: str, value: Any, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1, keep=2)
    forged = values(2)
    forged[section][key] = value
    checkpoint.publish(tmp_path, 2, tensors(2), forged, 2)
    assert newest_step(tmp_path) == 1
    assert re.search(f"state.json is damaged or not of this project: .*{named}", capsys.readouterr().err)


FOREIGN = ("step_keep", "step_00000001-keep", "step_1", "step_000000003", "step_00000099", "step_00000098", "step_00000097", ".step_x.old")


def test_only_what_is_ours_is_gone_on_from_or_deleted(tmp_path: Path) -> None:
    """Copies under other names and numbers, a file, a link, a folder with something else in it, a hidden folder of another name."""
    publish(tmp_path, 1)
    for name in FOREIGN[:5]:
        shutil.copytree(tmp_path / "step_00000001", tmp_path / name)
    (tmp_path / "step_notes.txt").write_text("notes")
    (tmp_path / "step_00000098").write_text("a file")
    (tmp_path / "step_00000097").symlink_to(tmp_path / "step_keep")
    (tmp_path / ".step_x.old").mkdir()
    (tmp_path / ".step_00000099.old").mkdir()
    (tmp_path / ".step_00000099.old/precious").write_text("text")
    assert newest_step(tmp_path) == 1
    for step in range(2, 5):
        publish(tmp_path, step)
        assert newest_step(tmp_path) == step
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*FOREIGN, "step_notes.txt", ".step_00000099.old", "step_00000004"}
    assert (tmp_path / "step_00000099/state.json").exists()
    with pytest.raises(UserError, match="step_00000099 is in the way and no checkpoint of this run"):
        publish(tmp_path, 99)
    with pytest.raises(UserError, match="step_00000097 is in the way"):
        publish(tmp_path, 97)
    assert newest_step(tmp_path) == 4
