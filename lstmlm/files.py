"""Writing files so that a kill or a power cut leaves the old content or the new, never a part; and the lock."""

import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until its content is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # which a failing write does not tell by itself
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` this content in one step, whether it exists or not."""
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process leaves is written over
    try:
        write_file(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def to_json(values: Any, indent: int | None = None) -> bytes:
    """Plain values as JSON; a number that is not finite is null, as JSON knows neither NaN nor Infinity."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, allow_nan=False).encode()


def cannot_write(error: OSError) -> str:
    """What went wrong with which file, and how much room there is."""
    path = Path(str(error.filename or "."))
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return f"cannot write {path}: {error.strerror} ({shutil.disk_usage(place).free / 2**20:,.0f} MiB free)"


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
