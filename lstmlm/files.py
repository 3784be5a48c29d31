"""Files: written so that a kill or a power cut leaves the old content or the new, never a part; what a command may write to; the lock."""

import fcntl
import hashlib
import io
import logging
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from lstmlm.console import UsageError, UserError, check, standard_output

# The files of a model and of a run: no other output may replace one.
MODEL_FILES = ("config.json", "vocab.json", "model.safetensors", "README.md")
RUN_FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", ".lock", "checkpoints", "model")
STANDARD_OUTPUT = ("-", "/dev/stdout")
_HOST = hashlib.sha256(platform.node().encode(errors="surrogateescape")).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.lstmlm-([0-9a-f]{8})-[0-9a-f]{32}\.tmp")

logger = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> None:
    """Write a new file and wait until its content is on the disk.

    Raises:
        FileExistsError: Something has this name already, be it a link.
    """
    with _opened(path, os.O_EXCL | os.O_NOFOLLOW) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_file(path: Path, content: bytes) -> None:
    """Add to a file's end."""
    with _opened(path, os.O_APPEND) as file:
        file.write(content)


def _opened(path: Path, mode: int) -> BinaryIO:
    return io.BufferedWriter(_NamedFile(path, os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644)))


class _NamedFile(io.FileIO):
    """An open file whose errors name `path`, which a failing write does not tell by itself."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(descriptor, "wb")
        self._path = str(path)

    def write(self, content: Any) -> int:
        try:
            return os.write(self.fileno(), content)
        except OSError as error:
            error.filename = self._path
            raise


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` this content in one step, whether it exists or not."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, in one step, when the block has ended well. Until then, `path` is as it was.

    A file keeps its permissions. A link is replaced; `Output` writes through it.
    """
    temporary = _temporary(path.parent)
    try:
        sweep(path.parent)
        descriptor = _create(temporary, stat.S_IMODE(path.stat().st_mode) if path.is_file() else None)
        with io.BufferedWriter(_NamedFile(path, descriptor)) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise


def _temporary(folder: Path) -> Path:
    return folder / f".lstmlm-{_HOST}-{uuid.uuid4().hex}.tmp"


def _create(path: Path, permissions: int | None = None) -> int:
    """Make a temporary file and open it for writing. Its lock tells `sweep` that its writer lives."""
    while True:
        mode = 0o666 if permissions is None else permissions
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        if permissions is not None:
            with suppress(OSError):  # a file system without permissions
                os.fchmod(descriptor, permissions)
        with suppress(OSError):  # without locks: nobody sweeps there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # no sweeper came before the lock
            return descriptor
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete what killed writers have left in a folder; another host's only when it is a day old, as locks may not reach so far."""
    for path in folder.glob(".lstmlm-*.tmp"):
        if not (found := _TEMPORARY.fullmatch(path.name)):
            continue
        with suppress(OSError):  # its writer lives, or it is another user's
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                facts = os.fstat(descriptor)
                if stat.S_ISREG(facts.st_mode) and (found[1] == _HOST or facts.st_mtime < time.time() - 86_400):
                    path.unlink()
            finally:
                os.close(descriptor)


def cannot_write(error: OSError) -> str:
    """What went wrong with which file, and how much room there is."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"cannot write: {reason}"
    path = Path(os.fsdecode(error.filename))
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):  # not there, or not to be looked at
            return f"cannot write {path}: {reason} ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"
    return f"cannot write {path}: {reason}"


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(path: str | Path) -> Path:
    """A path as the user wrote it, with `~` replaced by the home folder.

    Raises:
        UserError: There is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: this user has no home folder; name a folder without ~, or set HOME") from None


def open_file(path: Path) -> io.BufferedReader:
    """A file to be read.

    Raises:
        UserError: It cannot be read, or is no file: a folder, a device, a FIFO, which might never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UserError(f"cannot read {path}: it is {_kind(mode)}, not a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of a file.

    Raises:
        UserError: It cannot be read, or has more bytes than `most`.
    """
    try:
        with open_file(path) as file:
            if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
                raise UserError(f"cannot read {path}: it has {size:,} bytes, and such a file has {most:,} at most")
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    return next((name for holds, name in kinds.items() if holds(mode)), "a device")


class Output:
    """What a command writes when its work is done, checked before the work begins. A link is written through.

    Args:
        name: As the user wrote it. `-` and /dev/stdout are standard output; /dev/null takes all and keeps nothing.
        kept: What the work reads: files, and the folders of models and runs.
        option: That the name was given with, for messages.
        again: Of a model's files, those beside a file of this name may be replaced.

    Attributes:
        standard: Whether it is standard output.
        plain: Whether it is a file, there or not.

    Raises:
        UsageError: It cannot be written, is no file, is one of `kept`, or is a file of a model or a run.
    """

    def __init__(self, name: str | Path, kept: Iterable[str | Path] = (), option: str = "--output", again: str | None = None) -> None:
        self._told = told = f"{option} {name}"
        path = user_path(name)
        try:
            facts = path.stat()
        except FileNotFoundError:
            facts = None
        except OSError as error:
            raise UsageError(f"{told}: {error.strerror}") from None
        self.standard = str(name) in STANDARD_OUTPUT or (facts is not None and os.path.samestat(facts, os.fstat(1)))
        self.plain = not self.standard and not (facts and path.samefile(os.devnull))
        self.path = Path(os.path.realpath(path))
        if not self.plain:
            check(not self.standard or sys.stdout is not None, f"{told}: standard output is closed")
            return
        if facts is not None:
            check(stat.S_ISREG(facts.st_mode), f"{told} is {_kind(facts.st_mode)}: name a file")
            check(os.access(path, os.W_OK), f"{told} is write-protected: name another file")
        self.keep(kept)
        if owner := _owner(self.path, again):
            raise UsageError(f"{told} is a file of the model or run in {owner}: name another file")
        check(self.path.parent.is_dir(), f"{told}: there is no folder {self.path.parent}")
        _check_room(self.path.parent, told)

    def keep(self, kept: Iterable[str | Path]) -> None:
        """Refuse to be one of these files, by whatever name; `kept` and errors are as above."""
        for file in chain.from_iterable(map(_files, kept)) if self.plain else ():
            same = self.path.exists() and file.exists() and self.path.samefile(file)
            if same or self.path == file.absolute():
                raise UsageError(f"{self._told} is {file}, which this command reads or writes already: name another file")

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, which has its new content, all of it, when the block has ended well.

        Raises:
            UserError: It cannot be written.
        """
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
        name: As the user wrote it.
        files: Their names. Where one exists, it is replaced only if `again` does too, the file that tells an earlier output.
        again: One of them; None = none is replaced.
        kept, option: As for `Output`.

    Raises:
        UsageError: It is no folder, cannot be written, or holds what must stay.
    """

    def __init__(
        self,
        name: str | Path,
        files: Sequence[str] = (),
        again: str | None = None,
        kept: Sequence[str | Path] = (),
        option: str = "--output",
    ) -> None:
        self.path, self._again, self._option = user_path(name), again, option
        told = f"{option} {name}"
        check(str(name) not in STANDARD_OUTPUT, f"{told}: standard output is no folder")
        try:
            nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists() or folder.is_symlink())
            there = [file for file in files if os.path.lexists(self.path / file)]
        except OSError as error:
            raise UsageError(f"{told}: {error.strerror}") from None
        check(nearest.is_dir(), f"{told}: {nearest} is not a folder")
        _check_room(nearest, told)
        owner = _owner(Path(os.path.realpath(self.path)), again)
        check(owner is None, f"{told} is a folder of the run in {owner}: name another folder")
        check(not there or again in there, f"{told} holds {', '.join(there)}, which would be lost: name another folder")
        for file in there:
            Output(self.path / file, kept, option, again)

    def write(self, contents: dict[str, bytes]) -> None:
        """Write a file of each name, each in one step, `again` first.

        Raises:
            UserError: One cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(cannot_write(error)) from None
        for name in sorted(contents, key=lambda name: name != self._again):
            Output(self.path / name, (), self._option, self._again).write(contents[name])


def _check_room(folder: Path, told: str) -> None:
    """Refuse a folder in which no file can be made."""
    try:
        os.close(_create(temporary := _temporary(folder)))
        temporary.unlink()
    except OSError as error:
        raise UsageError(f"{told}: cannot write to {folder}: {error.strerror}") from None


def _files(path: str | Path) -> list[Path]:
    """A file itself; of a folder, the files of the model or the run in it."""
    names = (*MODEL_FILES, *RUN_FILES) if Path(path).is_dir() else ("",)
    return [file for name in names for file in (Path(path, name), *Path(path, name).rglob("*"))]


def _owner(path: Path, again: str | None) -> Path | None:
    """The folder of the model or the run that a file belongs to; None where it is of neither."""
    model = path.parent if path.name in MODEL_FILES and path.exists() else None
    if model and all((model / name).exists() for name in MODEL_FILES[:2]) and not (again and (model / again).exists()):
        return model
    for folder in path.parents:
        if all((folder / name).exists() for name in RUN_FILES[:2]) and path.relative_to(folder).parts[0] in RUN_FILES:
            return folder
    return None


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file within a block. The kernel lets go of it when its holder dies, so a killed process blocks nobody.

    Args:
        path: Made where it does not exist; never written to.
        wait: Whether to wait for another holder; told after a second, and then every minute.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        OSError: The file cannot be made, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    told_at = time.monotonic() + 1
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not wait or not isinstance(error, BlockingIOError):
                    error.filename = str(path)  # which a failing lock does not tell by itself
                    raise
            if time.monotonic() >= told_at:
                logger.warning("waiting for another process, which holds %s", path)
                told_at += 60
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
