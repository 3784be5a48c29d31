"""YAML and JSON of strangers: bounded, and what is wrong with them in one line."""

from pathlib import Path
from typing import Any

import pytest

from lstmlm.console import UserError
from lstmlm.records import append_line, cut_lines, load_yaml, read_json, read_json_lines


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "an alias is not taken, so write it out, in line 2"),  # a dozen such lines hold terabytes
        ("a: &a\n  b: *a\n", "an alias is not taken, so write it out, in line 2"),
        ("a: 1\nb: 2\na: 3\n", "the key a stands twice in line 3"),
        ("a: " + "x" * 300_000, "it has 300,003 bytes, and such a file has 262,144 at most"),
        ("[" * 20_000, "damaged"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \ud800", "damaged"),
    ],
    ids=["bomb", "loop", "twice", "large", "deep", "code", "surrogate"],
)
def test_yaml_that_is_too_much_or_wrong(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=rf"^[^\n]*{path}[^\n]*{told}[^\n]*$"):
        load_yaml(path)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    assert load_yaml(path) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\xff", '{"a": NaN}', '{"a": ' + "1" * 5000 + "}"])
def test_json_that_is_damaged(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"^{path} is damaged or not of this project: [^\n]+$"):
        read_json(path, dict[str, Any])


def test_damaged_lines_are_left_out_refused_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    append_line(path, {"a": 1, "b": float("nan")})
    with path.open("ab") as file:
        file.write(b"[]\n\xff\n")
    append_line(path, {"a": 2})
    length = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"a": ')  # which is being written
    assert read_json_lines(path) == [{"a": 1, "b": None}, {"a": 2}]
    with pytest.raises(UserError, match="line 2"):
        read_json_lines(path, dict[str, Any])
    assert not cut_lines(path, length)
    assert path.read_bytes() == b'{"a": 1, "b": null}\n{"a": 2}\n'
    assert cut_lines(path, 20)
    assert read_json_lines(path, dict[str, Any]) == [{"a": 1, "b": None}]
