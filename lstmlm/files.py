"""Files: written so that a kill or a power cut leaves the old content or the new, never a part; what a command may write to; the lock."""

import fcntl
import hashlib
import io
import logging
import os
import platform
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lstmlm.console import UsageError, UserError, check, standard_output

# The files of a model and of a run: no other output may replace one. The first two together tell a model, or a run, from other folders.
MODEL_FILES = ("config.json", "vocab.json", "model.safetensors", "README.md")
RUN_FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", ".lock", "checkpoints", "model")
STANDARD_OUTPUT = ("-", "/dev/stdout")
_HOST = hashlib.sha256(platform.node().encode(errors="surrogateescape")).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.lstmlm-([0-9a-f]{8})-[0-9a-f]{32}\.tmp")

logger = logging.getLogger(__name__)


class _NamedFile(io.FileIO):
    """An open file whose failing writes name it, as failing opens do."""

    def __init__(self, path: Path, mode: str, permissions: int = 0o666) -> None:
        super().__init__(str(path), mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, permissions))

    def write(self, content: Any) -> int:
        try:
            return os.write(self.fileno(), content)
        except OSError as error:
            error.filename = self.name
            raise


def write_file(path: Path, content: bytes) -> None:
    """Write a new file, under a name that nothing has, not even a link, and wait until its content is on the disk."""
    with io.BufferedWriter(_NamedFile(path, "x")) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_file(path: Path, content: bytes) -> None:
    """Add to a file's end."""
    with io.BufferedWriter(_NamedFile(path, "a")) as file:
        file.write(content)


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` this content in one step, whether it exists or not."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, in one step, when the block has ended well. Until then, `path` is as it was.

    A file keeps its permissions. A link is replaced; `Output` writes through it.
    """
    temporary = path.with_name(f".lstmlm-{_HOST}-{uuid.uuid4().hex}.tmp")
    try:
        sweep(path.parent)
        with io.BufferedWriter(_create(temporary, stat.S_IMODE(path.stat().st_mode) if path.is_file() else None)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):  # fsync names no file
            error.filename = str(path)
        raise


def _create(path: Path, permissions: int | None) -> _NamedFile:
    """Make a temporary file. Its lock tells `sweep` that its writer lives."""
    while True:
        file = _NamedFile(path, "x", 0o666 if permissions is None else permissions)
        with suppress(OSError):  # a file system without permissions
            if permissions is not None:
                os.fchmod(file.fileno(), permissions)
        with suppress(OSError):  # without locks: nobody sweeps there
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # no sweeper came before the lock
            return file
        file.close()


def sweep(folder: Path) -> None:
    """Delete what killed writers have left in a folder; another host's only when it is a day old, as locks may not reach so far."""
    for path in folder.glob(".lstmlm-*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        with suppress(OSError):  # its writer lives, or it is another user's
            facts = path.lstat()
            if found and stat.S_ISREG(facts.st_mode) and (found[1] == _HOST or facts.st_mtime < time.time() - 86_400):
                with path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def cannot_write(error: OSError) -> str:
    """What went wrong with which file."""
    reason = "something of this name is there already" if isinstance(error, FileExistsError) else error.strerror or error
    return f"cannot write {error.filename or 'a file'}: {reason}"


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(path: str | Path) -> Path:
    """A path as the user wrote it, with `~` replaced by the home folder; a UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: this user has no home folder; name a folder without ~, or set HOME") from None


def open_file(path: Path) -> io.BufferedReader:
    """A file to be read; what cannot be read is a UserError, and so is a folder, a device or a FIFO, which might never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"cannot read {path}: it is a folder or a device, not a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of a file that has `most` bytes at most; a UserError where it has more or cannot be read."""
    try:
        with open_file(path) as file:
            if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
                raise UserError(f"cannot read {path}: it has {size:,} bytes, and such a file has {most:,} at most")
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


class Output:
    """What a command writes when its work is done, checked before the work begins. A link is written through.

    Args:
        name: As the user wrote it. `-` and /dev/stdout are standard output; /dev/null takes all and keeps nothing.
        kept: What the work reads: files, `-` for standard input, and the folders of models and runs.
        option: That the name was given with, for messages.

    Raises:
        UsageError: It cannot be written, is no file, is one of `kept`, or is a file of a model or a run.
    """

    def __init__(self, name: str | Path, kept: Iterable[str | Path] = (), option: str = "--output") -> None:
        self._told = told = f"{option} {name}"
        path = user_path(name)
        try:
            facts = path.stat()
        except FileNotFoundError:
            facts = None
        except OSError as error:
            raise UsageError(f"{told}: {error.strerror}") from None
        self.standard = str(name) in STANDARD_OUTPUT or (facts is not None and os.path.samestat(facts, os.fstat(1)))
        self.plain = not self.standard and not (facts and path.samefile(os.devnull))  # a file, there or not
        self.path = Path(os.path.realpath(path))
        self.keep(kept)
        if not self.plain:
            return
        if facts is not None:
            check(stat.S_ISREG(facts.st_mode), f"{told} is a folder or a device: name a file")
            check(os.access(path, os.W_OK), f"{told} is write-protected: name another file")
        if owner := _owner(path.absolute()) or _owner(self.path):
            raise UsageError(f"{told} is a file of the model or run in {owner}: name another file")
        check(self.path.parent.is_dir(), f"{told}: there is no folder {self.path.parent}")
        _check_writable(self.path.parent, told)

    def keep(self, kept: Iterable[str | Path]) -> None:
        """Refuse (UsageError) to be one of these files, or a file of one of these models and runs, by whatever name.

        `-` is the file that standard input comes from; the file that standard output goes to is compared too.
        """
        names = ("", *MODEL_FILES, *RUN_FILES, *(f"model/{name}" for name in MODEL_FILES))
        own = _facts(1 if self.standard else self.path)
        for file in (Path(place, name) for place in kept for name in names):
            other = _facts(0 if str(file) == "-" else file)
            same = own and other and stat.S_ISREG(own.st_mode) and os.path.samestat(own, other)
            if same or (self.plain and self.path == file.absolute()):
                name = "the file of standard input" if str(file) == "-" else file
                own_name = "standard output" if self.standard else self._told
                raise UsageError(f"{own_name} is {name}, which this command reads or writes already: name another file")

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, which has its new content, all of it, when the block has ended well; a UserError where it cannot be written."""
        try:
            with standard_output() if self.standard else replacing(self.path) if self.plain else self.path.open("wb") as file:
                yield file
        except OSError as error:
            if error.filename != str(self.path):
                raise
            raise UserError(cannot_write(error)) from None

    def write(self, content: bytes) -> None:
        """Write all of it, as `opened` does."""
        with self.opened() as file:
            file.write(content)


class OutputFolder:
    """A folder that a command writes some files into, checked before the work begins. It is made where it does not exist.

    Args:
        name, option: As for `Output`.
        files: Names of those that must not be lost.
        again: The one of them that marks an earlier output of ours, whose files may be replaced.
        source: Folder that the work reads: none of its files is replaced.

    Raises:
        UsageError: It is no folder, cannot be written, or holds what must stay.
    """

    def __init__(
        self, name: str | Path, files: Sequence[str] = (), again: str | None = None, source: Path | None = None, option: str = "--output"
    ) -> None:
        self.path, self._again = user_path(name), again
        told = f"{option} {name}"
        check(str(name) not in STANDARD_OUTPUT, f"{told}: standard output is no folder")
        try:
            nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists() or folder.is_symlink())
            there = [file for file in files if os.path.lexists(self.path / file)]
        except OSError as error:
            raise UsageError(f"{told}: {error.strerror}") from None
        check(nearest.is_dir(), f"{told}: {nearest} is not a folder")
        _check_writable(nearest, told)
        place = Path(os.path.realpath(self.path))
        run = _run(place / RUN_FILES[0] if files else place)  # for files, a run's folder itself is refused too
        check(run is None, f"{told} belongs to the run in {run}: name another folder")
        earlier = again in there and not (source and source.exists() and self.path.samefile(source))
        ours = [file for file in there if stat.S_ISREG((self.path / file).lstat().st_mode) and os.access(self.path / file, os.W_OK)]
        lost = [file for file in there if not (earlier and file in ours)]
        check(not lost, f"{told} holds {', '.join(lost)}, which would be lost: name another folder")

    def write(self, contents: dict[str, bytes]) -> None:
        """Write a file of each name, each in one step, `again` first; a UserError where one cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in sorted(contents, key=lambda name: name != self._again):
                replace_file(self.path / name, contents[name])
        except OSError as error:
            raise UserError(cannot_write(error)) from None


def _facts(file: Path | int) -> os.stat_result | None:
    """Of a file or of an open one; None where there is none."""
    try:
        return os.fstat(file) if isinstance(file, int) else file.stat()
    except (OSError, ValueError):  # the latter of a name with a NUL
        return None


def _check_writable(folder: Path, told: str) -> None:
    check(os.access(folder, os.W_OK | os.X_OK), f"{told}: no file can be made in {folder}: name another folder")


def _owner(path: Path) -> Path | None:
    """The folder of the model or the run that a file belongs to; None where it is of neither."""
    model = path.parent
    of_model = path.name in MODEL_FILES and all((model / name).exists() for name in MODEL_FILES[:2])
    return model if of_model else _run(path)


def _run(path: Path) -> Path | None:
    """The folder of the run that a file or folder belongs to."""
    for folder in path.parents:
        if all((folder / name).exists() for name in RUN_FILES[:2]) and path.relative_to(folder).parts[0] in RUN_FILES:
            return folder
    return None


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # NFS locks what can be written
    except PermissionError:  # another user's, for which this one can wait all the same
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[Callable[[], bool]]:
    """Hold a lock file, made where there is none, within a block. The kernel lets go of it when its holder dies.

    Yields:
        Whether it is held still: somebody may have deleted or moved it, and others may hold one of its name.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false. A wait is told after a second, and then every minute.
        OSError: The file cannot be made, or its file system has no locks.
    """
    told_at = time.monotonic() + 1
    while True:
        with os.fdopen(_open_lock(path)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not wait or not isinstance(error, BlockingIOError):
                    error.filename = str(path)  # which a failing lock does not tell by itself
                    raise
            else:
                held = partial(_is_at, file.fileno(), path)
                if held():  # else its last holder has deleted it
                    yield held
                    return
        if time.monotonic() >= told_at:
            logger.warning("waiting for another process, which holds %s", path)
            told_at += 60
        time.sleep(0.05)
