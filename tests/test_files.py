"""Files are whole or as they were, whoever else writes or dies; an output destroys nothing; only files are read."""

import errno
import os
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from lstmlm.console import UsageError, UserError, run_script
from lstmlm.files import Output, OutputFolder, locked, open_file, read_file, replace_file, replacing, write_file
from lstmlm.runtime.distributed import STOP_SIGNALS


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def test_two_writers_leave_the_whole_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as first, replacing(path) as second:
        for letter in (b"1", b"2"):
            first.write(letter * 9999)
            second.write(b"x")
    assert path.read_bytes() == b"1" * 9999 + b"2" * 9999
    assert hidden(tmp_path) == []


def test_what_others_have_stays(tmp_path: Path) -> None:
    """A link or a file under any name that a temporary file might have, too."""
    secret, path = tmp_path / "secret", tmp_path / "a"
    secret.write_text("secret")
    names = [".a.tmp", ".lstmlm-notes.tmp", f".lstmlm-{'0' * 8}-{'f' * 32}.tmp"]
    (tmp_path / names[0]).symlink_to(secret)
    (tmp_path / names[1]).write_text("mine")
    (tmp_path / names[2]).write_text("another host's, of now")
    replace_file(path, b"new")
    assert (path.read_bytes(), secret.read_text()) == (b"new", "secret")
    assert sorted(path.name for path in hidden(tmp_path)) == sorted(names)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / names[0], b"through the link")
    assert secret.read_text() == "secret"


@pytest.mark.parametrize(
    ("number", "status"), [*((number, 128 + number << 8) for number in STOP_SIGNALS), (signal.SIGKILL, signal.SIGKILL)]
)
def test_a_writer_that_is_stopped_leaves_what_was_there(number: int, status: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if number != signal.SIGKILL:  # a background job of a shell may ignore it
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        def main() -> int:
            with replacing(path):
                os.write(say, b"x")
                time.sleep(30)
            return 0

        os._exit(run_script(main))
    os.close(say)
    os.read(ready, 1)
    os.close(ready)
    os.kill(pid, number)
    assert os.waitpid(pid, 0)[1] == status
    assert path.read_text() == "old"
    if number == signal.SIGKILL:
        (left,) = hidden(tmp_path)
        with replacing(tmp_path / "b") as file:  # which sweeps, but not what is being written
            assert not left.exists()
            replace_file(tmp_path / "c", b"")
            file.write(b"b")
    assert hidden(tmp_path) == []


def test_under_nohup_a_hang_up_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_script(lambda: int(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)) == 0


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for operation in ("write", "fsync"):  # at the latter some file systems tell it
        with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"^cannot write {path}: No space left on device$"):
            patch.setattr(os, operation, full)
            Output(path).write(b"new")
        assert (path.read_text(), hidden(tmp_path)) == ("old", [])
    Output(path).write(b"new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)


def test_a_folder_that_goes_during_the_work_is_told_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    output = Output(tmp_path / "gone/a")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match=f"^cannot write {output.path}: No such file or directory$"):
        output.write(b"new")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input, a model, a run, and things that are no files; the process stands in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "vocab.json", "model.safetensors", "README.md"):
        for folder in ("model", "run/model"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(name)
    Path("begun/model").mkdir(parents=True)  # a run without metrics yet, whose model is elsewhere
    Path("begun/model/vocab.json").symlink_to(tmp_path / "weights")
    for name in ("run/config.yaml", "run/metrics.jsonl", "run/notes", "begun/config.yaml", "input", "other", "weights"):
        (tmp_path / name).write_text(name)
    Path("hard").hardlink_to("input")
    Path("soft").symlink_to("input")
    Path("loop").symlink_to("loop")
    Path("shared").mkdir()
    for name in ("config.json", "vocab.json", "README.md"):  # as in the Hub's cache
        Path("shared", name).symlink_to("../other")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("input", "is input, which this command reads"),
        ("hard", "is input, which this command reads"),
        ("model/model.safetensors", "is a file of the model or run in .*model"),
        ("shared/README.md", "is a file of the model or run in .*shared"),
        ("run/config.yaml", "is a file of the model or run in .*run"),
        ("run/checkpoints/step_00000001/state.json", "is a file of the model or run in .*run"),
        ("run/model/anything", "is a file of the model or run in .*run"),
        ("begun/config.yaml", "is begun/config.yaml, which this command reads"),
        ("weights", "is begun/model/vocab.json, which this command reads"),
        ("socket", "is a folder or a device"),
        ("/dev/zero", "is a folder or a device"),
        ("run", "is a folder"),
        ("new/a", "there is no folder .*new"),
        ("input/a", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_an_output_that_would_destroy_or_cannot_be_is_refused(name: str, told: str, place: Path) -> None:
    def state() -> dict[Path, object]:
        return {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}

    before, device = state(), Path("/dev/zero").stat()
    with pytest.raises(UsageError, match=rf"^--output {name}:? {told}[^\n]*$"):
        Output(name, ["input", "begun"])
    assert state() == before
    assert Path("/dev/zero").stat().st_rdev == device.st_rdev


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_is_write_protected_is_refused(place: Path) -> None:
    Path("other").chmod(0o400)
    Path("run").chmod(0o500)
    for name in ("other", "run/new"):
        with pytest.raises(UsageError, match=r"write-protected|no file can be made in"):
            Output(name)
    with pytest.raises(UsageError, match="holds other, which would be lost"):
        OutputFolder(".", ["other"], "other")


def test_an_output_may_be_a_file_a_link_a_null_device_or_standard_output(place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("link").symlink_to("other")
    Path("dangling").symlink_to("new")
    Path("own").hardlink_to("model/vocab.json")
    for name in ("other", "link", "dangling", "plain", "run/notes", "own"):
        Output(name, ["input", "run"]).write(name.encode())
    assert Path("model/vocab.json").read_text() == "vocab.json"
    assert [Path(name).read_text() for name in ("other", "new", "plain", "run/notes")] == ["link", "dangling", "plain", "run/notes"]
    assert Path("link").is_symlink()
    assert Path("dangling").is_symlink()
    null = Output(os.devnull)
    null.write(b"nothing")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert not null.standard
    names = ["-", "/dev/stdout", "/dev/fd/1", *(["/proc/self/fd/1"] if Path("/proc").exists() else [])]  # macOS has no /proc
    for name in names:
        out = Output(name)
        assert out.standard
        out.write(b"x")
    assert capfdbinary.readouterr().out == b"x" * len(names)
    assert hidden(place) == []


def test_the_files_of_standard_input_and_output_are_compared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats, fstat = {0: Path("input").stat(), 1: Path("other").stat()}, os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: stats[file] if file in stats else fstat(file))
    for name, kept, told in (("hard", "-", "the file of standard input"), ("-", "other", "other"), ("other", "other", "other")):
        own = "standard output" if name in ("-", "other") else f"--output {name}"
        with pytest.raises(UsageError, match=f"^{own} is {told}, which this command reads or writes already"):
            Output(name, [kept])
    Output("-", ["input", "-"])
    stats[1] = stats[0]
    with pytest.raises(UsageError, match=r"^standard output is the file of standard input, which"):
        Output("-", ["-"])


def test_a_folder_of_outputs(place: Path) -> None:
    OutputFolder("made/here", ["a", "b"], "b").write({"a": b"1", "b": b"2"})
    OutputFolder("made/here", ["a", "b"], "b", Path("absent")).write({"a": b"3", "b": b"4"})
    assert (Path("made/here/a").read_text(), Path("made/here/b").read_text()) == ("3", "4")
    for name, told in {
        "input": "input is not a folder",
        "input/a": "input is not a folder",
        "model": "holds README.md, which would be lost",
        "run": "belongs to the run",
        "run/model": "belongs to the run",
        "a" * 256: "File name too long",
    }.items():
        with pytest.raises(UsageError, match=rf"^--output {name}:? .*{told}"):
            OutputFolder(name, ["a", "README.md"], "a")
    with pytest.raises(UsageError, match="holds a, b, which would be lost"):
        OutputFolder("made/here", ["a", "b"], "b", Path("made/../made/here"))
    Path("made/here/a").unlink()
    Path("made/here/a").symlink_to(place / "input")
    with pytest.raises(UsageError, match="holds a, which would be lost"):
        OutputFolder("made/here", ["a", "b"], "b")


@pytest.mark.parametrize("name", ["fifo", "socket", "/dev/zero", "run", "loop", "absent", "a" * 256, "nul\0"])
def test_only_files_are_read(name: str, place: Path) -> None:
    for read in (open_file, read_file):
        with pytest.raises(UserError, match=r"^cannot read [^\n]*$"):
            read(Path(name))
    with pytest.raises(UserError, match="cannot read input: it has 5 bytes, and such a file has 4 at most"):
        read_file(Path("input"), 4)
    assert read_file(Path("soft"), 5) == b"input"


def test_a_lock_of_another_user_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be read by all and written by its owner, as the usual umask has it."""
    lock, real = tmp_path / "lock", os.open
    lock.touch()

    def of_another(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", of_another)
    with locked(lock, wait=False), pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
