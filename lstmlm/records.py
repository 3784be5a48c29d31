"""JSON, YAML and JSON lines as files hold them, checked against what they should be."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lstmlm.console import UserError, one_line
from lstmlm.files import append_file, read_file, replace_file

T = TypeVar("T")
MOST_YAML, MOST_JSON = 2**18, 2**30  # bytes of a file; a vocabulary is the largest


def to_json(values: Any, indent: int | None = None) -> bytes:
    """Values as JSON, which knows no NaN and no infinity: `null` stands for them."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False).encode()


def to_yaml(values: Any) -> bytes:
    """Values as YAML, in their order, with quotes around a text that some reader of YAML takes for a number, such as `1e5`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False).encode()


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, "'" if text[:1] in "+-.0123456789" else None)


_Dumper.add_representer(str, _text)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def read_json(path: Path, kind: type[T], others: Literal["forbid", "allow"] = "forbid") -> T:
    """The content of a JSON file as the dataclass, TypedDict or plain type that it should be; `others` is what becomes of further keys.

    Raises:
        UserError: It cannot be read, or is not a `kind`: naming the file and the first thing that is wrong.
    """
    try:
        return as_kind(path, json.loads(read_file(path, MOST_JSON)), kind, others)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def read_yaml(path: Path, kind: type[T]) -> T:
    """As `read_json`, for YAML. A key that stands twice is refused."""
    return as_kind(path, load_yaml(path), kind)


def load_yaml(path: Path) -> Any:
    """What a YAML file says, whatever it is. A key that stands twice is refused, and so is an alias: a few can stand for terabytes."""
    try:
        return yaml.load(read_file(path, MOST_YAML), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise damaged(path, f"{error.problem}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def as_kind(path: Path, values: Any, kind: type[T], others: Literal["forbid", "allow"] = "forbid") -> T:
    """What was read from a file, as `read_json` gives it; a UserError where it is not a `kind`."""
    try:
        # Through JSON: pydantic, which is strict here, then takes a list for a tuple, and no other type for another.
        content = json.dumps(values, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from None
    return _check_each(path, [content], kind, others)[0]


def _check_each(path: Path, contents: Sequence[bytes], kind: type[T], others: Literal["forbid", "allow"]) -> list[T]:
    """JSON texts of a file, each as a `kind`."""
    from pydantic import TypeAdapter, ValidationError

    adapter, checked = TypeAdapter(kind), []
    for number, content in enumerate(contents, start=1):
        try:
            checked.append(adapter.validate_json(content, strict=True, extra=others))
        except (UserError, ValueError, TypeError, RecursionError) as error:  # the first is a check of the dataclass itself
            reason = str(error)
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"]))
                reason = f"{place}: {first['msg']}" if place else first["msg"]
            raise damaged(path, f"line {number}: {reason}" if len(contents) > 1 else reason) from None
    return checked


def damaged(path: Path, reason: object) -> UserError:
    """What is said of a file that is not what it should be."""
    return UserError(f"{path} is damaged or not of this project: {one_line(reason) or 'it holds no text'}")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias is not taken, so write it out,", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # any other is refused below
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON to a file."""
    append_file(path, to_json(values) + b"\n")


def cut_lines(path: Path, length: int) -> bool:
    """Cut a file of JSON lines back to what it was at a length in bytes; a line of that which is damaged goes too.

    Returns:
        Whether it still held all of that length; a UserError where it cannot be read.
    """
    content = read_file(path)[:length] if os.path.lexists(path) else b""
    intact = b"".join(line for line in content.splitlines(keepends=True) if _values(line) is not None)
    if len(intact) == length:
        if path.exists():
            os.truncate(path, length)
        return True
    replace_file(path, intact)
    return False


def read_json_lines(path: Path, kind: type[T] | None = None) -> list[Any]:
    """The objects that `append_line` wrote. What stands after the last line end is being written, and is left out.

    Args:
        path: Of the file; without it there are no lines.
        kind: What each line is, else a `UserError`; other keys are kept. None = any object, and damaged lines are left out.
    """
    content = read_file(path) if os.path.lexists(path) else b""
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    if kind is not None:
        return _check_each(path, lines, kind, "allow")
    return [values for values in map(_values, lines) if values is not None]


def _values(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is damaged or unfinished."""
    with suppress(ValueError, RecursionError):
        values = json.loads(line)
        if line.endswith(b"\n") and isinstance(values, dict):
            return values
    return None
