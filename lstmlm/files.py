"""Files: written so that a kill or a power cut leaves the old content or the new, never a part; read as what they should be; the lock."""

import io
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import yaml

from lstmlm.console import UserError

try:
    import fcntl
except ImportError:  # Windows: everything but the lock works
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

logger = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until its content is on the disk."""
    _write(path, content, os.O_TRUNC)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON to a file."""
    _write(path, to_json(values) + b"\n", os.O_APPEND, wait=False)


def cut_lines(path: Path, length: int) -> bool:
    """Cut a file of JSON lines back to what it was at a length; a line of that which is damaged goes too.

    Args:
        path: Of a file that `append_line` writes; one that is missing is made where it was not empty.
        length: In bytes.

    Returns:
        Whether it still held all of that length.

    Raises:
        UserError: It cannot be read.
    """
    intact = b"".join(line for line, _ in _lines(path, length))
    if len(intact) == length:
        if path.exists():
            os.truncate(path, length)
        return True
    replace_file(path, intact)
    return False


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON that `append_line` wrote, damaged ones left out; none where there is no file.

    Raises:
        UserError: It cannot be read.
    """
    return [values for _, values in _lines(path)]


def _lines(path: Path, length: int | None = None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The undamaged lines within a length, as they are and as what they say."""
    content = read_file(path)[:length] if os.path.lexists(path) else b""
    for line in content.splitlines(keepends=True):
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if line.endswith(b"\n") and isinstance(values, dict):
                yield line, values


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


def to_json(values: Any, indent: int | None = None) -> bytes:
    """Values as JSON, which knows no NaN and no infinity: `null` stands for them."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False).encode()


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def read_json(path: Path, kind: type[T], others: Literal["forbid", "allow"] = "forbid") -> T:
    """The content of a JSON file as the dataclass, TypedDict or plain type that it should be.

    Args:
        path: Of the file.
        kind: Its fields, their types and checks; a field that has a default may be missing.
        others: Whether keys that `kind` does not have are refused or kept.

    Raises:
        UserError: It cannot be read, or is not a `kind`: naming the file and the first thing that is wrong.
    """
    try:
        values = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return as_kind(path, values, kind, others)


def read_yaml(path: Path, kind: type[T]) -> T:
    """As `read_json`, for YAML. A key that stands twice is refused."""
    return as_kind(path, load_yaml(path), kind)


def load_yaml(path: Path) -> Any:
    """What a YAML file says, whatever it is. A key that stands twice is refused.

    Raises:
        UserError: It cannot be read, or is no YAML: naming the file and the line.
    """
    try:
        return yaml.load(read_file(path), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _damaged(path, f"{error.problem}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def as_kind(path: Path, values: Any, kind: type[T], others: Literal["forbid", "allow"] = "forbid") -> T:
    """What was read from a file, as `read_json` gives it.

    Raises:
        UserError: It is not a `kind`.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # Through JSON: pydantic takes its list for a tuple, but no other type for another.
        plain = json.dumps(values, allow_nan=False)
        return TypeAdapter(kind).validate_json(plain, strict=True, extra=others)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except (UserError, ValueError, TypeError, RecursionError) as error:  # the first is a check of the dataclass itself
        raise _damaged(path, error) from None


def _damaged(path: Path, reason: object) -> UserError:
    told = " ".join(str(reason).split())[:300] or "it holds no text"
    return UserError(f"{path} is damaged or not of this project: {told}")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file within a block. The kernel lets go of it when its holder dies, so a killed process blocks nobody.

    Args:
        path: Made where it does not exist; never written to.
        wait: Whether to wait for another holder; told after a second.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        UserError: The system has no such lock.
        OSError: The file cannot be made, or its file system has no locks.
    """
    if fcntl is None:
        raise UserError(f"cannot lock {path}: this system has no flock; train and prepare data on Linux or macOS")
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
