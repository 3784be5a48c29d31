"""The command's tables: what is in them, what is refused, and what stays as it was."""

import csv
import errno
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, score_text
from lstmlm.cli import score
from lstmlm.config import ModelConfig
from lstmlm.evaluation import surprisal
from lstmlm.evaluation.surprisal_tables import Scoring, score_files
from lstmlm.evaluation.text import Reset
from lstmlm.model.pretrained import save_pretrained
from tests.helpers import ROOT

WORDS = ["<unk>", "<eos>", "the", "<b>", '"', "naïve", "ship's", "NA"]
TEXT = 'the <b> " naïve\n\nzebra " ship\'s NA &amp; the\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8, init_range=3.0), len(WORDS))
    save_pretrained(tmp_path / "run" / "model", model, Vocabulary(WORDS), {"dataset": "toy"})
    return tmp_path / "run"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    return tmp_path / "a.txt"


@pytest.fixture
def rows(folder: Path) -> list[Any]:
    return score_text(TEXT, folder)


@pytest.mark.parametrize(("form", "reset"), [("tsv", "line"), ("jsonl", "document"), ("parquet", "never")])
def test_the_table_has_the_rows(form: str, reset: Reset, folder: Path, text: Path, tmp_path: Path) -> None:
    output, rows = tmp_path / "table", score_text(TEXT, folder, reset, eos=True)
    options = ["--model", str(folder), "--eos", "true", "--reset", reset, "--threads", "1"]
    score([str(text), *options, "--format", form, "--output", str(output)])
    if form == "parquet":
        table = pandas.read_parquet(output)
    elif form == "jsonl":
        table = pandas.DataFrame(json.loads(line) for line in output.read_text("utf-8").splitlines())
    else:
        table = pandas.read_csv(output, sep="\t", keep_default_na=False)
    assert list(table) == "sentence_id token_id token surprisal unk entropy rank word_id".split()
    assert [*table.itertuples(index=False, name=None)] == rows
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_a_parquet_column_that_begins_empty(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surprisal, "WINDOW_CHARACTERS", 1)  # a window and so a group of rows for each sentence
    (tmp_path / "one.txt").write_text("the\nthe NA\n")
    options = ["--add", "length", "previous", "--format", "parquet", "--output", str(tmp_path / "table")]
    score([str(tmp_path / "one.txt"), "--model", str(folder), *options])
    table = pandas.read_parquet(tmp_path / "table")
    assert table["previous_length"].isna().tolist() == [True, True, False]
    assert (table["previous_surprisal"][2], table["previous_length"][2]) == (table["surprisal"][1], 3)


def test_neural_complexity(folder: Path, text: Path, rows: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "table"
    score_files([str(text)], [folder], form="neural-complexity", output=output)
    table = [line.split(" ") for line in output.read_text("utf-8").splitlines()]
    assert table[0] == "word sentid sentpos wlen surp entropy entred".split()
    assert [line[:4] for line in table[1:6]] == [
        ["the", "0", "0", "3"],
        ["<b>", "0", "1", "3"],
        ['"', "0", "2", "1"],
        ["naïve", "0", "3", "5"],
        ["zebra", "2", "0", "5"],
    ]
    entropy = [float(line[5]) for line in table[1:]]
    assert [(float(line[4]), float(line[5])) for line in table[1:]] == [(row.surprisal, row.entropy) for row in rows]
    falls = [max(0, entropy[i - 1] - entropy[i]) if row.token_id > 1 else 0 for i, row in enumerate(rows)]
    assert [float(line[6]) for line in table[1:]] == pytest.approx(falls, abs=1e-6)
    assert any(falls)


def shaded(page: str) -> list[tuple[str, str]]:
    return [(kind, unescape(word)) for kind, word in re.findall(r'<i class="([^"]*)" title="[^"]*">(.*?)</i>', page)]


def test_the_page_shades_each_word(folder: Path, text: Path, rows: list[Any], tmp_path: Path) -> None:
    score_files([str(text)], [folder], output=tmp_path / "table", page=tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text("utf-8")
    words = shaded(content)
    assert words == [(f"s{min(int(row.surprisal / 2), 9)}{' unk' if row.unk else ''}", row.token) for row in rows]
    assert len({kind for kind, _ in words}) > 2
    assert re.findall(r"<(?:script|link|img|b)\b| (?:src|href)=", content) == [], "nothing is fetched, and text is no markup"
    assert content.count('<p dir="auto">') == 2
    assert f"{len(rows)} words, {sum(row.surprisal for row in rows) / len(rows):.3f} bits each" in content


def test_files_as_training_reads_them(folder: Path, rows: list[Any], tmp_path: Path) -> None:
    """A mark of byte order and line ends of Windows are no part of a word."""
    content = '\ufeffsentence\r\n"the <b> "" naïve"\r\n""\r\n"zebra "" ship\'s NA &amp; the"\r\n'
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content.encode()))
    score_files([str(tmp_path / "a.csv.gz")], [folder], output=tmp_path / "table", column="sentence")
    table = pandas.read_csv(tmp_path / "table", sep="\t", keep_default_na=False)
    assert [*table.itertuples(index=False, name=None)] == rows


def test_what_the_model_does_not_see(folder: Path, tmp_path: Path) -> None:
    """A word of zero-width spaces alone, which `normalize` drops; and a note whose line ends are not the table's."""
    (tmp_path / "a.csv").write_bytes('text,note\nthe \u200b NA,"x\ry"\n'.encode())
    score_files([str(tmp_path / "a.csv")], [folder], Scoring("word", normalize=True), output=tmp_path / "table")
    table = pandas.read_csv(tmp_path / "table", sep="\t", keep_default_na=False)
    assert (table["pieces"].tolist(), set(table["note"])) == ([1, 0, 1], {"x\ry"})
    score_files([str(tmp_path / "a.csv")], [folder], Scoring(normalize=True), form="neural-complexity", output=tmp_path / "table")
    entropies = [line.split(" ")[5] for line in (tmp_path / "table").read_text("utf-8").splitlines()]
    assert entropies[1:3] == [f"{table['entropy'][0]}"] * 2


def test_characters(tmp_path: Path) -> None:
    """What a reader takes for one is one on the page (UAX 29): letters with their marks, a family, flags."""
    vocabulary = Vocabulary.build(["ab e\u0301"], level="char")
    save_pretrained(tmp_path, LSTMLanguageModel(ModelConfig(4, 4), len(vocabulary)), vocabulary, {"dataset": "toy"})
    (tmp_path / "a.txt").write_text("a e\u0301b👩‍👩‍👧🇩🇪🇫🇷\n")
    score_files([str(tmp_path / "a.txt")], [tmp_path], form="neural-complexity", output=tmp_path / "table")
    words = [line.split(" ")[0] for line in (tmp_path / "table").read_text("utf-8").splitlines()]
    assert words == ["word", "a", "e\u0301b👩‍👩‍👧🇩🇪🇫🇷"]
    for by, shown in (("token", ["a", " ", "e\u0301", "b", "👩‍👩‍👧", "🇩🇪", "🇫🇷"]), ("word", words[1:])):
        score_files([str(tmp_path / "a.txt")], [tmp_path], Scoring(by), output=tmp_path / "table", page=tmp_path / "page.html")
        assert [word for _, word in shaded((tmp_path / "page.html").read_text("utf-8"))] == shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a.txt", "latin.txt"], "latin.txt is not UTF-8 near b'"),
        (["empty.txt"], "no text to score in empty.txt"),
        (["empty.txt", "--html", "page.html"], "no text to score in empty.txt"),
        (["zero.txt", "--normalize", "--by", "word"], "no text to score in zero.txt"),
        (["a.txt", "--dataset", "a.txt"], "--dataset says where the training text is, for --add frequency alone"),
        (["a.txt", "--format", "xml"], "format"),
        (["a.txt", "--format", "tsv", "--output", "y.csv"], "--output y.csv: its name says csv, but --format tsv"),
        (["a.txt", "--reset", "story"], "--reset story: it is none of line, document, never, and a.txt has no such column, nor any other"),
        (["a.txt", "--threads", "0"], "threads must be from 1 to 1024, not 0"),
        (["a.txt", "--eos", "true", "--format", "neural-complexity"], "neural-complexity's table is of words and one model, without <eos>"),
        (["a.txt", "--format", "parquet", "--output", "-"], "parquet is not for standard output: name a file with --output"),
        (["a.txt", "--html", "table"], "table, which this command reads"),
        (["-", "/dev/stdin"], "once only"),
        (["a.txt", "--by", "region"], "--by region needs --regions"),
        (["a.txt", "--regions", "|", "--by", "word"], "--regions has a row for each region: leave out --by word"),
        (["a.txt", "--regions", "parts"], "--regions parts: there is no such column; a mark has no letters"),
        (["a.txt", "--by", "token", "--space", "after"], "--space after is for models whose tokens have white space in them"),
        (["a.txt", "--add", "size"], "add must be one of length, frequency, punctuation, previous, previous2, previous3, not size"),
        (["b.csv", "--regions", "labels"], "b.csv, row 1 has 2 words, but 3 labels in column labels"),
        (["a.txt", "b.csv"], "b.csv, row 1: the column labels is not in all rows and files"),
        (["a.txt", "--model", "run"], "--model run is named twice"),
        (["note.csv"], "note.csv is not UTF-8 near b'"),
        (["half.jsonl"], "half.jsonl is not UTF-8 near"),
        (["twice.csv"], "twice.csv has two columns of one name"),
    ],
)
def test_bad_input_is_wrong_use_and_what_was_there_stays(
    arguments: list[str], named: str, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("the na\nnaïve".encode("latin-1"))
    Path("empty.txt").touch()
    Path("zero.txt").write_text("\u200b\n")
    Path("b.csv").write_text("text,labels\nthe NA,a b c\n")
    Path("note.csv").write_text("text,note\nthe,x\nNA,naïve\n", "latin-1")
    Path("half.jsonl").write_text('{"text": "the", "note": ["\\ud800"]}\n')
    Path("twice.csv").write_text("item,item,text\n1,2,the\n")
    Path("table").write_text("earlier")
    before = sorted(path.name for path in tmp_path.iterdir())
    output = [] if "--output" in arguments else ["--output", "table"]
    with pytest.raises(UserError) as refusal:
        score([*arguments, "--model", "run", *output])
    assert refusal.value.status == 2
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert Path("table").read_text() == "earlier"
    assert Path("a.txt").read_text("utf-8") == TEXT
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("earlier")
    write = os.write

    def full(file: int, content: bytes) -> int:
        if bytes(content[:9]) == b"<!DOCTYPE":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*/page\.html: No space left"):
        score_files([str(text)], [folder], output=tmp_path / "table", page=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "earlier"
    assert not (tmp_path / "table").exists()


def test_the_commands_of_the_docs_from_stimuli_to_a_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docs = (ROOT / "docs/scoring.md").read_text("utf-8")
    for name in "ab":
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / name).symlink_to(folder)
    Path("stimuli.csv").write_text('item,condition,text\n1,x,the <b>\n2,y,"zebra the the naïve\nNA, the"\n', "utf-8")
    (command,) = re.findall(r"lstmlm score (stimuli\.csv .*)", docs)
    score(command.replace(" frequency", "").split())
    times = [(s, 1, "x", 1, "the", 300 + s) for s in range(2)] + [
        (s, 2, "y", place, "the", 300 + 10 * place + s) for place in (2, 3) for s in range(2)
    ]
    reading = pandas.DataFrame(times, columns=["subject", "item", "condition", "word_id", "word", "rt"])
    reading.to_csv("reading.csv", index=False)
    code, plot = (part.split("```")[0] for part in docs.split("```python\n")[1:3])
    code, names = code.replace('"frequency_a"', '"surprisal_a"'), dict[str, Any]()
    assert len(code.splitlines()) <= 9
    exec(code, names)
    exec(plot, names)
    assert Path("surprisal.png").stat().st_size > 1000
    joined = pandas.read_csv("joined.csv", keep_default_na=False)
    assert joined["rt"].tolist() == [330, 331], "the first word of a sentence has none before it, the second an unknown one"
    assert joined["condition"].tolist() == ["y", "y"]
    reading.assign(item=2, condition="y").to_csv("reading.csv", index=False)
    with pytest.raises(AssertionError, match="the two tables do not have the same words"):
        exec(code, {})


def test_the_command_in_a_pipe(cli: Callable[..., subprocess.CompletedProcess[str]], folder: Path, rows: list[Any], tmp_path: Path) -> None:
    """UTF-8 in and out whatever the locale says, standard output with rows alone; `| head -1` in silence."""
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = cli("score", "-", "--model", str(folder), "--threads", "1", input=TEXT, encoding="utf-8", env=environment)
    warned, told = result.stderr.splitlines()
    assert "20% of the tokens are <unk>" in warned
    assert (result.returncode, told.partition(",")[0]) == (0, f"run: {len(rows)} tokens")
    names, *table = csv.reader(result.stdout.splitlines(), "excel-tab")
    assert table == [[str(value) for value in row] for row in rows]
    (tmp_path / "long.txt").write_text("the naïve\n" * 100_000, "utf-8")
    command = f"{sys.executable} {ROOT}/scripts/score.py {tmp_path}/long.txt --model {folder}"
    shell = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
    )
    assert shell.stdout.splitlines() == ["\t".join(names), "141"]


def test_what_standard_input_comes_from_is_not_replaced(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_text("the zebra\n")
    facts, fstat = (tmp_path / "in.txt").stat(), os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: fstat(file) if file else facts)
    with pytest.raises(UserError, match="is the file of standard input"):
        score_files(["-"], [folder], output=tmp_path / "in.txt")


def test_a_column_is_for_tables(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the\n")
    (tmp_path / "a.csv").write_text("id,own\n1,zebra\n")
    files = [str(tmp_path / "a.txt"), "-"]
    with pytest.raises(UserError, match=r"--text_column own: the name of a table ends with \.csv"):
        score_files(files, [folder], column="own")
