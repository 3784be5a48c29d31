"""Files of every form against the text that went into them."""

import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lstmlm import UserError
from lstmlm.data import reading
from lstmlm.data.reading import blocks_of, form_of, read_blocks, rows_of
from lstmlm.data.tokenize import Characters, Words
from tests.helpers import little_memory, make_file

ODD = "a\tb\x00c d\x0ce\x85f\u2028g\xa0h\u3000i \ufeff j<unk>"  # nothing in it ends a line


def write_rows(path: Path, rows: list[str | None]) -> Path:
    form, table = form_of(path), io.StringIO()
    if form == "parquet":
        pq.write_table(pa.table({"number": range(len(rows)), "text": rows}), path, row_group_size=3)
        return path
    if form == "jsonl":
        table.writelines(json.dumps({"x": 1, "text": row}) + "\n" for row in rows)
    elif form == "json":
        json.dump([{"x": 1, "text": row} for row in rows], table, indent=1)
    else:
        writer = csv.writer(table, "excel-tab" if form == "tsv" else "excel")
        writer.writerow(["x", "text"])
        writer.writerows([1, row] for row in rows)
    return make_file(path, table.getvalue().encode())


def read(path: Path, column: str = "text") -> str:
    return "".join(read_blocks(path, column))


@pytest.fixture(params=[7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of a few characters too, so that everything falls on a boundary once."""
    monkeypatch.setattr(reading, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("name", ["t.txt", "T.TXT.GZ", "wiki.train.tokens"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_of_a_text(tmp_path: Path, name: str, mark: str, block: int) -> None:
    text = f"{ODD}\r\n\r\r\nhälf\rone\n\n日本 \n last"
    path = make_file(tmp_path / name, f"{mark}{text}".encode())
    assert read(path) == f"{ODD}\n\n\nhälf\none\n\n日本 \n last\n"
    assert [text for text, _ in rows_of(path, "text")] == [ODD, "", "", "hälf", "one", "", "日本 ", " last"]
    assert read(make_file(tmp_path / "m.txt", "a\n\ufeffb\n".encode())) == "a\n\ufeffb\n", "a mark begins a file alone"


@pytest.mark.parametrize("name", ["t.csv", "T.CSV.gz", "t.tsv", "t.jsonl", "t.jsonl.GZ", "t.json", "T.Json.gz", "t.PARQUET"])
def test_rows(tmp_path: Path, name: str, block: int) -> None:
    rows = ["", "one", "\ufeffmarked", "a\r\nb\rc\n\nd\n", ODD, "x,\"y\" 'z'", "日本"]
    path = write_rows(tmp_path / name, rows)
    lines = ["", "one", "\ufeffmarked", "a", "b", "c", "", "d", ODD, "x,\"y\" 'z'", "日本"]
    assert read(path) == "".join(f"{line}\n" for line in lines)
    assert [text for text, _ in rows_of(path, "text")] == rows
    for content in ('\n[{"text": "b"}]', '[\n {"text":\n "b"}]', '\n\n{"text": "b"}\n\n'):
        assert read(make_file(tmp_path / "m.json", f"\ufeff{content}".encode())) == "b\n"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('n;text;rt\n1;"a, b; c";1,5\n', [{"n": "1", "rt": "1,5"}]),  # as Excel writes it where a comma is decimal
        ('"n;x",text,rt\n1,a,"1;5;6;7;8"\n', [{"n;x": "1", "rt": "1;5;6;7;8"}]),
        ('"my; text; b",text,rt\n1,a,2\n', [{"my; text; b": "1", "rt": "2"}]),
        ('"two\nlines",text,rt\n1,a,2\n', [{"two\nlines": "1", "rt": "2"}]),
    ],
)
def test_the_first_line_says_what_parts_the_columns(tmp_path: Path, content: str, rows: list[dict[str, str]]) -> None:
    path = make_file(tmp_path / "n.csv", content.encode())
    assert [others for _, others in rows_of(path, "text", whole=True)] == rows


@pytest.mark.parametrize("name", ["e.txt", "e.txt.gz", "e.csv", "e.jsonl"])
def test_nothing_in_a_file_is_no_line(tmp_path: Path, name: str) -> None:
    assert read(make_file(tmp_path / name, b"text\n" if name == "e.csv" else b"")) == ""


def test_every_tokenizer_reads_the_odd_characters_as_documented() -> None:
    assert Words().tokenize(f"{ODD}\n") == ["a", "b\x00c", "d", "e", "f", "g", "h", "i", "\ufeff", "j<unk>", "<eos>"]
    assert Characters().tokenize(f"{ODD}\n") == [*ODD, "<eos>"]


@pytest.mark.parametrize("line", ["ab " * 50, "." * 60 + "ab " * 50, "ab " * 20 + "." * 95 + "ab " * 50])
def test_blocks_of_a_long_line_are_short_where_it_may_be_cut(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 20)
    assert max(map(len, blocks_of([line]))) <= 40 + line.count(".")


MANY: list[str | None] = [f"{i} {i * i} {i**5}" for i in range(20_000)]


@pytest.mark.parametrize(
    ("name", "damage", "place"),
    [
        ("d.txt.gz", "cut", r"line \d+"),
        ("d.txt.gz", "flip", r"line \d+"),
        ("d.csv.gz", "cut", r"row \d+"),
        ("d.jsonl", "cut", r"row \d+"),
        ("d.parquet", "cut", "row 1"),
        ("d.parquet", "empty", "row 1"),
    ],
)
def test_a_damaged_file_is_told_with_the_place(tmp_path: Path, name: str, damage: str, place: str) -> None:
    path = tmp_path / name
    make_file(path, "\n".join(map(str, MANY)).encode()) if ".txt" in name else write_rows(path, MANY)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255 if damage == "flip" else 0
    path.write_bytes({"flip": content, "cut": content[: -len(content) // 3], "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"{re.escape(name)} is damaged or unfinished at {place}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.csv", b'x,text\n1,a\n2,b\n3,"c\n', "at row 3"),
        ("n.csv", b"x,text\n1,a\n2\n", "at row 2: it has 1 fields, not 2"),
        ("n.csv", b"text\nHello.\nHello, world.\n", "at row 2: it has 2 fields, not 1: a text that holds the separator needs quotes"),
        ("n.csv", b"x,text\n1,a\n2,\xff\n", r"is not UTF-8 near b'x,text\\n1,a\\n2,\\xff\\n'"),
        (
            "n.tsv",
            b'x\ttext\n1\t"a\n2\tb"\n3\tc\n',
            "row 1: a quote at a cell's beginning takes in all rows up to the next one: put quotes around",
        ),
        ("n.tsv", b'x\ttext\n1\t"Stop!" he cried.\n', "row 1: text behind a cell's second quote: put quotes around a text that has some"),
        ("n.txt", "a\n".encode("utf-16"), "is not UTF-8 near .*: it is UTF-16, which iconv -f UTF-16 -t UTF-8 converts"),
        ("n.csv", b"PK\x03\x04\xff", "is not UTF-8 near .*: it is a spreadsheet or a zip file: save its table as CSV UTF-8"),
        ("n.conllu", b"1\ta\n", r"n\.conllu: its name must end with one of"),
        ("n.csv", b"x,y\n1,a\n", "has no column 'text', only x, y"),
        ("n.csv", b"text,text\na,b\n", "has two columns 'text'"),
        ("n.jsonl", b'{"text": "a"}\n{"text": null}\n', "row 2: column 'text' is null"),
        ("n.jsonl", b'{"text": "\\ud800"}\n', r"n\.jsonl is not UTF-8 near '\\ud800': convert it, as iconv"),
        ("n.csv", b"", "has no column 'text', nor any other: rename one"),
        ("n.jsonl", b'{"text": "a"}\n"b"\n', "at row 2: it is no JSON object"),
        ("n.jsonl", b"[" * 100_000, "at row 1"),
        ("n.jsonl", b'{"sentence": "a"}\n', "has no column 'text', only sentence: rename one, or name the one of the text"),
        ("n.json", b'{"text": "a"}\n{"text": 1}\n', "row 2: column 'text' holds int"),
        ("n.json", b'[{"text": "a"}, 1]', "at row 2: it is no JSON object"),
        ("n.txt", b"good line\nbad \xff line\n", r"n\.txt is not UTF-8 near b'good line\\nbad \\xff line\\n'"),
        ("n.txt", b"\xef\xbb\xbfgood \xe2\x82", r"n\.txt is not UTF-8 near b'.*\\xe2\\x82'"),
    ],
)
def test_a_bad_row_is_told_with_its_number(tmp_path: Path, name: str, content: bytes, message: str, block: int) -> None:
    path = make_file(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_null_and_other_types_in_parquet(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "n.parquet", ["a", None])
    with pytest.raises(UserError, match=r"n\.parquet, row 2: column 'text' is null"):
        read(path)
    with pytest.raises(UserError, match="row 1: column 'number' holds int, not text"):
        read(path, column="number")


def test_few_rows_of_parquet_are_held_at_once(tmp_path: Path) -> None:
    """A file of some hundred bytes may have rows that are long and alike."""
    table = pa.table({"text": pa.array(["x" * 500_000] * 200).dictionary_encode().cast(pa.string())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 5000
    with little_memory(40e6):
        assert len(next(read_blocks(tmp_path / "a.parquet", "text"))) > 0


def test_a_quoted_text_of_a_tsv_may_hold_tabs_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "n.tsv").write_text('id\ttext\n1\t"A poem:\n\tindented\nend"\n2\tx\n')
    assert read(tmp_path / "n.tsv") == "A poem:\n\tindented\nend\nx\n"
