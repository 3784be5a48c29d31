"""`lstmlm pairs`: which sentence of a pair is likelier."""

import gzip
import io
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch

from lstmlm import UserError, Vocabulary
from lstmlm import cli as commands
from lstmlm.evaluation.pairs import score_pairs, summarize
from lstmlm.model.pretrained import load, save_pretrained
from tests.helpers import WORDS, sharp_model, token_by_token

PAIRS = [
    ("agreement", "w1 w2 w3", "w1 w2 w4"),
    ("agreement", "w5 w1", "w6 w1 w7 w3"),
    ("agreement", "w1 strange", "w1 foreign"),
    ("order", "w1 w2 odd", "w2 w1 odd"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", sharp_model(len(WORDS)), Vocabulary(WORDS), {"dataset": "toy"})
    return tmp_path / "model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"UID": uid, "sentence_good": good, "sentence_bad": bad, "field": "x"} for uid, good, bad in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def bits(folder: Path, sentence: str) -> list[float]:
    saved = load(folder)
    _, nll = token_by_token(saved.model, saved.vocabulary.eos, saved.vocabulary.encode(sentence))
    return [value / math.log(2) for value in nll]


def test_each_pair_and_each_uid(folder: Path, file: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = cli("pairs", str(file), "--model", str(folder), "--json", "--output", str(tmp_path / "out.jsonl"))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["UID"], row["sentence_good"], row["sentence_bad"]) for row in rows] == PAIRS
    assert {row["field"] for row in rows} == {"x"}, "the file's own keys stay"
    for row in rows:
        for side in ("good", "bad"):
            assert row[f"surprisal_{side}"] == pytest.approx(sum(bits(folder, row[f"sentence_{side}"])), rel=1e-5)
    right = [row["surprisal_good"] < row["surprisal_bad"] for row in rows]
    outcomes = ["right" if each else "wrong" for each in right]
    assert [row["outcome"] for row in rows] == [*outcomes[:2], "tie", outcomes[3]], "both of the third are `w1 <unk>`"
    summaries = json.loads(result.stdout)
    assert list(summaries) == ["agreement", "order", "all"]
    known = {"known_pairs": 2, "known_accuracy": sum(right[:2]) / 2}  # not the third, of two unknown words
    assert summaries["agreement"] == {"pairs": 3, "accuracy": sum(right[:2]) / 3, "ties": 1, "unknown": 2 / 16, **known}
    known = {"known_pairs": 1, "known_accuracy": float(right[3])}  # the same word is unknown on both sides
    assert summaries["order"] == {"pairs": 1, "accuracy": float(right[3]), "ties": 0, "unknown": 2 / 6, **known}
    assert [(row["unknown_good"], row["unknown_bad"]) for row in rows[1:]] == [([], []), (["strange"], ["foreign"]), (["odd"], ["odd"])]
    assert summaries["all"]["accuracy"] == (sum(right[:2]) + right[3]) / 4
    assert summaries["all"]["unknown"] == 4 / 22


def test_a_table_for_people(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTF-8 comes out whatever the locale, and no control character."""
    file.write_text(file.read_text().replace('"order"', r'"Wör\tter 語\u001b"'))
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert commands.pairs([str(file), "--model", str(folder)]) == 0
    rows = [line.split("\t") for line in shown.getvalue().decode().splitlines()]
    assert rows[0] == ["UID", "pairs", "accuracy", "ties", "unknown", "known_pairs", "known_accuracy"]
    assert [row[0] for row in rows[1:]] == ["agreement", r"Wör\tter 語\x1b", "all"]
    assert (rows[1][1], rows[1][3], rows[1][5]) == ("3", "1", "2")
    file.write_text(json.dumps({"UID": "a", "sentence_good": "strange", "sentence_bad": "foreign"}))
    commands.pairs([str(file), "--model", str(folder)])
    assert shown.getvalue().decode().splitlines()[-1].split("\t")[-2:] == ["0", ""], "no pair is known"


def test_tables_in_and_out_and_no_groups(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pandas.DataFrame([pair[1:] for pair in PAIRS], columns=["sentence_good", "sentence_bad"])
    frame.to_csv(tmp_path / "a.csv", sep=";", index=False)  # as Excel writes it where a comma is decimal
    commands.pairs([str(tmp_path / "a.csv"), "--model", str(folder), "--json", "--output", str(tmp_path / "out.csv")])
    summaries = json.loads(capsys.readouterr().out)
    assert {name: summary["pairs"] for name, summary in summaries.items()} == {"all": 4}
    told, expected = pandas.read_csv(tmp_path / "out.csv", keep_default_na=False), score_pairs(tmp_path / "a.csv", folder)
    assert told["outcome"].tolist() == [pair["outcome"] for pair in expected]
    assert told["surprisal_good"].tolist() == pytest.approx([pair["surprisal_good"] for pair in expected])
    assert told["unknown_bad"].tolist() == ["", "", "foreign", "odd"]
    with pytest.raises(UserError, match=r"out\.json: no table is written as \.json; \.csv, \.tsv, \.jsonl and \.parquet are"):
        commands.pairs([str(tmp_path / "a.csv"), "--model", "absent", "--output", str(tmp_path / "out.json")])
    (tmp_path / "b.jsonl").write_text(
        '{"UID": "a", "sentence_good": "w1", "sentence_bad": "w2"}\n{"sentence_good": "w1", "sentence_bad": "w2"}'
    )
    with pytest.raises(UserError, match=r"b\.jsonl, row 2 has no 'UID' that is a line of text"):
        commands.pairs([str(tmp_path / "b.jsonl"), "--model", "absent"])


@pytest.mark.parametrize(
    ("content", "named", "status"),
    [
        (b"", "has no pairs", 1),
        (b'{"UID": "a"}\n', r"no column 'sentence_good', only UID$", 2),
        (b'{"UID": "a", "sentence_good": "a"}\n', r"row 1 has no 'sentence_bad' that is a line of text", 1),
        (b"\n[1]\n", "no JSON object", 2),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, named: str, status: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=named) as error:
        commands.pairs([str(tmp_path / "a.jsonl"), "--model", "absent"])
    assert error.value.status == status
    with pytest.raises(UserError, match="by must be one of sentence, one_prefix, two_prefix, not 'word'"):
        score_pairs(tmp_path / "a.jsonl", "absent", by="word")  # type: ignore[arg-type]


def test_a_zipped_array_and_a_uid_called_all(folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) | {"UID": "all"} for line in file.read_text().splitlines()]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    commands.pairs([str(tmp_path / "a.json.gz"), "--model", str(folder), "--json"])
    summaries = json.loads(capsys.readouterr().out)
    assert list(summaries) == ["all", "all pairs"]
    assert summaries["all"]["pairs"] == summaries["all pairs"]["pairs"] == 4


def test_critical_regions(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As BLiMP's one- and two-prefix methods: p(word | prefix), without an end of the line."""
    whole = {"UID": "a", "sentence_good": "w1 w2 w3", "sentence_bad": "w1 w2 w4\r\n"}
    one = {"one_prefix_method": True, "one_prefix_prefix": "w1 w2", "one_prefix_word_good": "w3", "one_prefix_word_bad": "w4 w5"}
    prefixes = {"two_prefix_prefix_good": "w1", "two_prefix_prefix_bad": "w2 w6"}
    two = {"two_prefix_method": True, "two_prefix_word": "w3", **prefixes}
    rows = [whole, whole | one, whole | two | {"one_prefix_method": False}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)  # where a flag is a text

    def words(prefix: str, text: str) -> object:
        return pytest.approx(sum(bits(folder, f"{prefix} {text}")[len(prefix.split()) : -1]), rel=1e-5)

    (from_csv,) = score_pairs(tmp_path / "a.csv", folder, by="one_prefix")
    (pair,) = score_pairs(tmp_path / "a.jsonl", folder, by="one_prefix")
    assert (from_csv["surprisal_good"], from_csv["surprisal_bad"]) == (pair["surprisal_good"], pair["surprisal_bad"])
    assert (pair["surprisal_good"], pair["surprisal_bad"]) == (words("w1 w2", "w3"), words("w1 w2", "w4 w5"))
    assert (pair["words"], pair["outcome"]) == (7, "right" if pair["surprisal_good"] < pair["surprisal_bad"] else "wrong")
    (pair,) = score_pairs(tmp_path / "a.jsonl", folder, by="two_prefix")
    assert (pair["surprisal_good"], pair["surprisal_bad"]) == (words("w1", "w3"), words("w2 w6", "w3"))
    (summary, _) = summarize([pair, pair | {"unknown_bad": ["zork"]}]).values()
    assert (summary["known_pairs"], summary["pairs"]) == (1, 2)
    (tmp_path / "a.jsonl").write_text(json.dumps(whole | two | {"two_prefix_prefix_bad": "w2 zork"}))
    (pair,) = score_pairs(tmp_path / "a.jsonl", folder, by="two_prefix")
    assert (pair["unknown_good"], pair["unknown_bad"]) == ([], ["zork"]), "in what stands before the critical word"
    assert "2 pairs are not made for --by one_prefix, and are left out" in caplog.text
    (tmp_path / "a.jsonl").write_text(json.dumps(whole | one | {"one_prefix_word_bad": " "}))
    with pytest.raises(UserError, match="row 1 has no 'one_prefix_word_bad' that is a line of text"):
        score_pairs(tmp_path / "a.jsonl", folder, by="one_prefix")


def test_a_critical_region_of_characters_is_whole_words(tmp_path: Path) -> None:
    """`cat` begins `cats`, and would by its characters alone always be the likelier of the two."""
    vocabulary = Vocabulary.build(["the cat sat\n"], "char")
    save_pretrained(tmp_path / "model", sharp_model(len(vocabulary)), vocabulary, {"dataset": "toy"})
    saved = load(tmp_path / "model")
    ends = torch.tensor([vocabulary.eos, vocabulary.id_of(" ")])

    def surprisal(prefix: str, word: str) -> object:
        ids = vocabulary.encode(f"{prefix} {word}".strip())
        log_p, nll = token_by_token(saved.model, vocabulary.eos, ids)
        first = len(prefix)
        ended = log_p[first, ends].logsumexp(-1).item() if prefix else 0
        return pytest.approx((sum(nll[first:-1]) - log_p[-1, ends].logsumexp(-1).item() + ended) / math.log(2), rel=1e-5)

    whole = {"UID": "a", "sentence_good": "x", "sentence_bad": "x"}
    rows = [
        whole | {"one_prefix_method": 1, "one_prefix_prefix": prefix, "one_prefix_word_good": good, "one_prefix_word_bad": bad}
        for prefix in ("", "the", "the sat")
        for good, bad in (("cat", "cats"), ("cats", "cat"))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = score_pairs(tmp_path / "a.jsonl", saved, by="one_prefix")
    for pair in pairs:
        sides = (surprisal(pair["one_prefix_prefix"], pair[f"one_prefix_word_{side}"]) for side in ("good", "bad"))
        assert (pair["surprisal_good"], pair["surprisal_bad"]) == tuple(sides)
    (tmp_path / "a.jsonl").write_text(
        json.dumps(
            whole
            | dict.fromkeys(("two_prefix_prefix_good", "two_prefix_word"), "cat")
            | {"two_prefix_method": 1, "two_prefix_prefix_bad": "the"}
        )
    )
    (pair,) = score_pairs(tmp_path / "a.jsonl", saved, by="two_prefix")
    assert (pair["surprisal_good"], pair["surprisal_bad"]) == (surprisal("cat", "cat"), surprisal("the", "cat"))


def test_an_option_that_is_given_twice_is_refused(folder: Path, file: Path) -> None:
    for command in (commands.pairs, commands.evaluate, commands.generate):
        named = [str(file)] if command is commands.pairs else []
        with pytest.raises(UserError, match="--model is given twice"):
            command([*named, "--model", str(folder), f"--model={folder}"])
    with pytest.raises(UserError, match="--add is given twice"):  # though a table may be of several models
        commands.score([str(file), "--model", str(folder), "--model", "null", "--add", "length", "--add", "previous"])
