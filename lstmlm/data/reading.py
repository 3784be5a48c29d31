"""Files to text: whatever the form of a file, the same stream of plain text, in blocks of bounded size.

A text file is one text. In the other forms each row is a text of its own, in one column. A text that does not end with a line end gets
one, so an empty row is an empty line, and an empty file has no line at all.
"""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lstmlm.console import UsageError, UserError, one_line
from lstmlm.data.tokenize import CUT, plain
from lstmlm.files import open_file

BLOCK = 1 << 20  # characters of a block, about
FORMS = dict.fromkeys((".txt", ".tokens", ".raw"), "text")
FORMS |= {f".{form}": form for form in ("csv", "tsv", "json", "jsonl", "parquet")}
ENDINGS = ".txt, .csv, .tsv, .json, .jsonl (also with .gz), .parquet"


def form_of(path: Path) -> str | None:
    """`text`, `csv`, `tsv`, `json`, `jsonl` or `parquet`, by the ending of a file's name in any case; None where it is another."""
    name = path.name.lower()
    form = FORMS.get(Path(name.removesuffix(".gz")).suffix)
    return None if form == "parquet" and name.endswith(".gz") else form


def check_form(path: Path) -> None:
    """Refuse a file whose name does not say what is in it.

    Raises:
        UsageError: Naming the endings that are read.
    """
    if form_of(path) is None:
        raise UsageError(
            f"{path}: its name must end with one of {ENDINGS}, in which a text is plain text, a sentence or a paragraph a line"
        )


def units(path: Path, column: str) -> int:
    """Number of lines of a text file, or of rows of another one."""
    if form_of(path) == "text":
        return sum(text.count("\n") for text in _text(path))
    return sum(1 for _ in _rows(path, column))


def read_blocks(path: Path, column: str, first: int = 0, end: int | None = None) -> Iterator[str]:
    """Plain text of a file in blocks of about a million characters, each of which ends where every tokenizer may cut.

    Args:
        path: A file; a text file where `form_of` does not know its form. `-` is standard input. A treebank's `.conllu` is refused.
        column: Where the text of a row stands.
        first, end: Only lines (of a text file) or rows `first` to `end` - 1.

    Raises:
        UserError: The file cannot be read, is damaged, or is not text in UTF-8, with the place.
    """
    if path.suffix.lower() == ".conllu":
        check_form(path)
    if form_of(path) not in ("text", None):
        return rows_to_blocks(islice((text for text, _ in _rows(path, column)), first, end))
    return blocks_of(_text(path)) if end is None else rows_to_blocks(islice(lines_of(_text(path)), first, end))


def read_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a file that a command names: text of each row, in plain text, and the values of its other columns; of a text file each line, and
    none.

    Args: As `read_blocks`.

    Raises:
        UsageError: As `read_blocks`.
    """
    try:
        if form_of(path) in ("text", None):
            yield from ((line, {}) for line in lines_of(read_blocks(path, column)))
            return
        for text, row in _rows(path, column, whole=True):
            yield plain(text), {name: value for name, value in row.items() if name != column}
    except UserError as error:
        raise UsageError(str(error)) from None


def rows_to_blocks(rows: Iterable[str]) -> Iterator[str]:
    """Blocks of the text that rows make, one row after the other."""
    return blocks_of(_joined(rows))


def row_text(value: object, row: int, place: str, column: str) -> str:
    """The text of a row.

    Raises:
        UserError: It is null, not text, or not Unicode.
    """
    problem = "is null" if value is None else f"holds {type(value).__name__}, not text"
    if isinstance(value, str):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            problem = "is not UTF-8"
    raise UserError(f"{place}, row {row}: column {column!r} {problem}: mend the row, or name another with the option text_column")


def check_column(column: str, columns: Iterable[str], place: str) -> None:
    """Refuse a column that is not there.

    Raises:
        UsageError: Naming those that are.
    """
    names = list(columns)
    if not names:
        raise UsageError(f"{place} is empty: it has no names of columns")
    if column not in names:
        raise UsageError(f"{place} has no column {column!r}, only {', '.join(names)}: name one with the option text_column")


def blocks_of(pieces: Iterable[str]) -> Iterator[str]:
    """Cut and join pieces of text of any size into blocks that end after a line end, or within a line as `CUT` allows."""
    kept: list[str] = []  # without a line end in them
    for piece in pieces:
        for start in range(0, len(piece), BLOCK):
            part = piece[start : start + BLOCK]
            end = part.rfind("\n") + 1
            if not end and (cut := CUT.search(part, len(part) // 2) or CUT.search(part)):
                end = cut.start()
            if end:
                yield "".join([*kept, part[:end]])
                kept = []
            kept.append(part[end:])
    if any(kept):
        yield "".join(kept)


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """Lines of a text that comes in blocks and ends with a line end, without their line ends."""
    begun: list[str] = []  # of a line that goes on in the next block
    for block in blocks:
        head, *lines = block.split("\n")
        begun.append(head)
        if lines:
            yield "".join(begun)
            yield from lines[:-1]
            begun = [lines[-1]]


def _joined(rows: Iterable[str]) -> Iterator[str]:
    held, size = [], 0
    for row in rows:
        text = plain(row)
        held.append(text if text.endswith("\n") else f"{text}\n")
        size += len(held[-1])
        if size >= BLOCK:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _text(path: Path) -> Iterator[str]:
    """A text file piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    place, lines, last = 0, 0, "\n"
    with _reading(path, lambda: f"line {lines + 1}"), _open(path) as file:
        more = True
        while more:
            content = file.read(BLOCK)
            more = bool(content)
            try:
                text = decoder.decode(content, final=not more)
            except UnicodeDecodeError as error:
                place += len(content) - len(error.object) + error.start
                raise UserError(f"{path} is not UTF-8 at byte {place}: convert it first") from None
            if place == 0:
                text = text.removeprefix("\ufeff")
            place += len(content)
            text = line_ends.decode(text, final=not more)
            lines += text.count("\n")
            last = text[-1:] or last
            yield text
    if last != "\n":
        yield "\n"


def _rows(path: Path, column: str, whole: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Text of each row of a file, and the row; `whole`: with all its columns."""
    number = 0
    with _reading(path, lambda: f"row {number + 1}"):
        for row in READERS[str(form_of(path))](path, column, whole):
            number += 1
            text = row_text(row[column], number, str(path), column)
            if whole:
                _check_unicode(row, path, f"row {number}")
            yield text, row


def _check_unicode(values: object, path: Path, place: str) -> None:
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} is not UTF-8 in {place}: convert it first") from None


def _csv(path: Path, column: str, whole: bool, dialect: str = "excel") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a row may hold a book
    # Bytes that are not UTF-8 become surrogates, which `row_text` and `_check_unicode` refuse with the row's number.
    with _open(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
        rows = csv.reader(file, dialect, strict=True)
        names = next(rows, [])
        _check_unicode(names, path, "its first line")
        check_column(column, names, str(path))
        if whole and (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise UserError(f"{path} has two columns {twice!r}: give each a name of its own")
        for row in rows:
            if row and len(row) != len(names):  # an empty line is no row
                within = "comma" if dialect == "excel" else "tab"
                raise csv.Error(f"it has {len(row)} fields, not {len(names)}: a text with a {within} in it needs quotes")
            if row:
                yield dict(zip(names, row, strict=True))


def _tsv(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    return _csv(path, column, whole, "excel-tab")


def _jsonl(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        yield from _objects((json.loads(line) for line in file if line.strip()), path, column)


def _json(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    """One array of objects; or JSON lines, as which some data sets come under this name."""
    with _open(path) as file:
        content = file.read()
    if content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _objects(json.loads(content), path, column)
    return _jsonl(path, column, whole)


def _objects(rows: Iterable[object], path: Path, column: str) -> Iterator[dict[str, Any]]:
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
        check_column(column, row, str(path))
        yield row


def _parquet(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with _open(path) as content, pyarrow.parquet.ParquetFile(content, buffer_size=BLOCK) as file:
        check_column(column, file.schema_arrow.names, str(path))
        for batch in file.iter_batches(256, columns=None if whole else [column], use_threads=False):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[Path, str, bool], Iterator[dict[str, Any]]]] = {
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if str(path) in ("-", "/dev/stdin"):
        if sys.stdin is None:
            raise UserError("standard input is closed")
        yield sys.stdin.buffer
        return
    with open_file(path) as file:
        if path.suffix.lower() == ".gz":
            with gzip.open(file) as content:
                yield content  # type: ignore[misc]
        else:
            yield file


@contextmanager
def _reading(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of reading into one line that names file and place."""
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        raise UserError(f"{path} is damaged or unfinished at {place()}: {one_line(error)}") from None
