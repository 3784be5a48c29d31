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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from lstmlm.console import UsageError, UserError, check, one_line
from lstmlm.data.tokenize import CUT, plain
from lstmlm.files import open_file

STANDARD_INPUT = ("-", "/dev/stdin")
QUOTES = "put quotes around a text that has some, and write each of them twice"
BLOCK = 1 << 20  # characters of a block, about
FORMS = dict.fromkeys((".txt", ".tokens", ".raw"), "text")
FORMS |= {f".{form}": form for form in ("csv", "tsv", "json", "jsonl", "parquet")}
ENDINGS = ".txt, .csv, .tsv, .json, .jsonl (also with .gz), .parquet"


def form_of(path: Path) -> str | None:
    """`text`, `csv`, `tsv`, `json`, `jsonl` or `parquet`, by the ending of a file's name in any case; None where it is another."""
    name = path.name.lower()
    form = FORMS.get(Path(name.removesuffix(".gz")).suffix)
    return None if form == "parquet" and name.endswith(".gz") else form


def is_table(name: str | Path) -> bool:
    """Whether a file has rows, each with a text in one of its columns."""
    return form_of(Path(name)) not in ("text", None)


def check_form(path: Path) -> None:
    """Refuse a file whose name does not say what is in it (UsageError)."""
    if form_of(path) is None:
        raise UsageError(f"{path}: its name must end with one of {ENDINGS}, of which .txt is plain text, a sentence or a paragraph a line")


def read_blocks(path: Path, column: str) -> Iterator[str]:
    """Plain text of a file in blocks of about a million characters, each of which ends where every tokenizer may cut.

    Args:
        path: A file; a text file where `form_of` does not know its form. `-` is standard input. A treebank's `.conllu` is refused.
        column: Where the text of a row stands.

    Raises:
        UserError: The file cannot be read, is damaged, or is not text in UTF-8, with the place.
    """
    return rows_to_blocks(text for text, _ in rows_of(path, column)) if is_table(path) else blocks_of(_text(path))


def read_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a file that a command names: each line, with no columns; or of each row the text, in plain text, and its other columns.

    Arguments and errors are those of `read_blocks`, but as the command is wrong, a UsageError.
    """
    try:
        for text, others in rows_of(path, column, whole=True):
            yield plain(text), others
    except UserError as error:
        raise UsageError(str(error)) from None


def rows_to_blocks(rows: Iterable[str]) -> Iterator[str]:
    """Blocks of the text that rows make, one row after the other."""
    return blocks_of(text if text.endswith("\n") else f"{text}\n" for text in map(plain, rows))


def row_text(value: object, row: int, place: str, column: str) -> str:
    """The text of a row; null, or what is no text, is refused (UserError)."""
    if isinstance(value, str):
        return value
    problem = "is null" if value is None else f"holds {type(value).__name__}, not text"
    raise UserError(f"{place}, row {row}: column {column!r} {problem}: mend it, or name another (--data.text_column, --text_column)")


def check_tables(column: str, *names: str) -> None:
    """Refuse to look for a column where all files are plain text (UsageError)."""
    some = column == "text" or any(map(is_table, names))
    check(some, f"--text_column {column}: the name of a table ends with .csv, .tsv, .json, .jsonl or .parquet")


def check_column(column: str, columns: Collection[str], place: str) -> None:
    """Refuse a column that is not there, or there twice (UsageError)."""
    check([*columns].count(column) < 2, f"{place} has two columns {column!r}: give each a name of its own")
    if column not in columns:
        there = f"only {', '.join(columns)}" if columns else "nor any other"
        remedy = "rename one, or name the one of the text (--data.text_column in training, else --text_column)"
        raise UsageError(f"{place} has no column {column!r}, {there}: {remedy}")


def blocks_of(pieces: Iterable[str]) -> Iterator[str]:
    """Cut and join pieces of text of any size into blocks that end after a line end, or within a line as `CUT` allows."""
    held, size = list[str](), 0
    for piece in pieces:
        for start in range(0, len(piece), BLOCK):
            part = piece[start : start + BLOCK]
            held.append(part)
            size += len(part)
            if size < BLOCK:
                continue
            end = part.rfind("\n") + 1
            if not end and (cut := CUT.search(part, len(part) // 2) or CUT.search(part)):
                end = cut.start()
            if end:
                yield "".join([*held[:-1], part[:end]])
                held, size = [part[end:]], len(part) - end
    if size:
        yield "".join(held)


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


def _text(path: Path) -> Iterator[str]:
    """A text file piece by piece."""
    if path.name.lower().removesuffix(".gz").endswith(".conllu"):
        check_form(path)
    lines, last = 0, "\n"
    with _reading(path, lambda: f"line {lines + 1} or later"), _open(path) as content, io.TextIOWrapper(content, "utf-8-sig") as file:
        while piece := file.read(BLOCK):
            lines += piece.count("\n")
            last = piece[-1]
            yield piece
    if last != "\n":
        yield "\n"


def rows_of(path: Path, column: str, whole: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a text file; or the text of each row of another one, and its other columns, all of them where `whole`."""
    if not is_table(path):
        yield from ((line, {}) for line in lines_of(_text(path)))
        return
    number = 0
    with _reading(path, lambda: f"row {number + 1}"):
        for row in READERS[str(form_of(path))](path, column, whole):
            number += 1
            yield row_text(row.pop(column), number, str(path), column), row


def _csv(path: Path, column: str, whole: bool, dialect: str = "excel") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a row may hold a book
    with _open(path) as content, io.TextIOWrapper(content, "utf-8-sig", newline="") as file:
        head = file.readline()
        separator = "\t" if dialect == "excel-tab" else ","
        if separator == "," and column not in next(csv.reader([head])) and column in next(csv.reader([head], delimiter=";")):
            separator = ";"  # as Excel writes where a comma is decimal
        rows = csv.reader(chain([head], file), dialect, delimiter=separator, strict=True)
        names = next(rows, [])
        check_column(column, names, str(path))
        if whole and len({*names}) < len(names):
            raise UserError(f"{path} has two columns of one name: give each a name of its own")
        for row in filter(None, rows):  # an empty line is no row
            if dialect == "excel-tab" and _holds_rows(row, len(names)):
                raise csv.Error(f"a quote at a cell's beginning takes in all rows up to the next one: {QUOTES}")
            if len(row) != len(names):
                raise csv.Error(f"it has {len(row)} fields, not {len(names)}: a text that holds the separator needs quotes around it")
            yield dict(zip(names, row, strict=True))


def _holds_rows(row: list[str], fields: int) -> bool:
    """Whether each line of a row that has several would be a row by itself, of so many fields."""
    lines = "\t".join(row).split("\n")
    return len(lines) > 1 and all(0 < line.count("\t") == fields - 1 for line in lines)


def _json(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    """Objects: one array of them, or one a line."""
    with _open(path) as file:
        lines = (line for line in file if line.removeprefix(codecs.BOM_UTF8).strip())
        first = next(lines, b"[]")
        rows = map(json.loads, chain([first], lines))
        if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            rows = iter(json.loads(first + file.read()))
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
            check_column(column, row, str(path))
            kept = json.dumps(row, ensure_ascii=False) if whole else str(row[column])
            kept.encode()  # refuses half a character, as "\ud800"
            yield row


def _parquet(path: Path, column: str, whole: bool) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with _open(path) as content, pyarrow.parquet.ParquetFile(content, buffer_size=BLOCK) as file:
        check_column(column, file.schema_arrow.names, str(path))
        for batch in file.iter_batches(16, columns=None if whole else [column], use_threads=False):
            yield from batch.to_pylist()


Reader = Callable[[Path, str, bool], Iterator[dict[str, Any]]]
READERS: dict[str, Reader] = {"csv": _csv, "tsv": partial(_csv, dialect="excel-tab"), "json": _json, "jsonl": _json, "parquet": _parquet}
FAULTS = (OSError, EOFError, zlib.error, csv.Error, ValueError, RuntimeError)  # of a file that is damaged


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if str(path) in STANDARD_INPUT:
        if sys.stdin is None:
            raise UserError("standard input is closed")
        yield sys.stdin.buffer
        return
    packed = path.suffix.lower() == ".gz"
    with open_file(path) as file, gzip.open(file) if packed else file as content:
        yield content  # type: ignore[misc]


@contextmanager
def _reading(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of reading into one line that names file and place."""
    try:
        yield
    except (UnicodeDecodeError, UnicodeEncodeError) as error:  # the latter of half a character
        near, begin = error.object[max(0, error.start - 20) : error.start + 20], error.object[:2]
        remedy = "convert it, as iconv -f WINDOWS-1252 -t UTF-8 does an old Western text"
        if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            remedy = "it is UTF-16, which iconv -f UTF-16 -t UTF-8 converts"
        elif begin == b"PK":
            remedy = "it is a spreadsheet or a zip file: save its table as CSV UTF-8"
        raise UserError(f"{path} is not UTF-8 near {near!r}: {remedy}") from None
    except FAULTS as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        told = f"text behind a cell's second quote: {QUOTES}" if "expected after" in str(error) else one_line(error)
        raise UserError(f"{path} is damaged or unfinished at {place()}: {told}") from None
