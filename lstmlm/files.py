"""Files: written so that a kill or a power cut leaves the old content or the new, never a part; the lock."""

import fcntl
import io
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lstmlm.console import UserError

logger = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until its content is on the disk."""
    _write(path, content, os.O_TRUNC)


def append_file(path: Path, content: bytes) -> None:
    """Add to a file's end."""
    _write(path, content, os.O_APPEND, wait=False)


def _write(path: Path, content: bytes, mode: int, wait: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if wait:
            os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # which a failing write does not tell by itself
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` this content in one step, whether it exists or not."""
    temporary = _temporary(path)  # one name: what a killed process leaves is written over
    try:
        write_file(temporary, content)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def sweep(paths: Iterable[Path]) -> None:
    """Delete what a killed `replace_file` of these paths has left behind."""
    for path in paths:
        _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, in one step, when the block has ended well. Until then, `path` is as it was."""
    temporary = _temporary(path)
    try:
        with io.BufferedWriter(_NamedFile(str(temporary), "wb")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


class _NamedFile(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            error.filename = str(self.name)  # which a failing write does not tell by itself
            raise


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


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file within a block. The kernel lets go of it when its holder dies, so a killed process blocks nobody.

    Args:
        path: Made where it does not exist; never written to.
        wait: Whether to wait for another holder; told after a second.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        OSError: The file cannot be made, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            _lock(descriptor, path, wait)
        except OSError as error:
            error.filename = str(path)  # which a failing lock does not tell by itself
            raise
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, wait: bool) -> None:
    told_at = time.monotonic() + 1
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
        if time.monotonic() >= told_at:
            logger.warning("waiting for another process, which holds %s", path)
            return fcntl.flock(descriptor, fcntl.LOCK_EX)
        time.sleep(0.05)
