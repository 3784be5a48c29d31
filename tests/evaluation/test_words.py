"""Words and regions: exact sums of what a model says of its tokens, whatever these are; against brute force."""

import csv
import functools
import json
import math
import random
import shutil
from pathlib import Path

import pandas
import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, cli, evaluate, score_text
from lstmlm.config import ModelConfig
from lstmlm.evaluation.words import cut
from lstmlm.model.pretrained import SavedModel, load, save_pretrained
from tests.helpers import token_by_token

TEXT = "the cat sat on the mat .\nthe Dog's naïve, well-known 1,000 日本 cats!\n"
WORDS = sorted({*TEXT.split(), "Dog", "'s", "naïve", ",", "well", "@-@", "known", "1", "@,@", "000", "cats", "!", "the dog"[4:]})
# What pieces must be put together to: marks, white space of all kinds, what changes its length in lower case or is not seen.
ALPHABET = [*"aZé.,'-\"1 9  \t\u00a0\u2003(…)&İß\u200b日\x1c\x00", "the", "e\u0301", "👩‍👩‍👧", "@-@", "<eos>", "No.", "..."]


@functools.cache
def vocabularies() -> dict[str, Vocabulary]:
    texts = [TEXT * 3]
    plain = Vocabulary(["<unk>", "<eos>", *WORDS])
    kinds = {"word": plain, "raw": plain.for_text(True, False), "moses": Vocabulary.build(texts, tokenizer="moses")}
    kinds |= {"char": Vocabulary.build(texts, "char"), "bpe": Vocabulary.build(texts, "bpe", max_size=280)}
    kinds["lower"] = Vocabulary.build(texts, "bpe", max_size=280, lowercase=True)
    kinds["normal"] = Vocabulary.build(texts, "char", lowercase=True, normalize=True)
    return kinds


KINDS = ("word", "raw", "moses", "char", "bpe", "lower", "normal")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SavedModel]:
    models = {}
    for name, vocabulary in vocabularies().items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / name
        model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8, init_range=2.0), len(vocabulary))
        written = vocabularies()["word"] if name == "raw" else vocabulary
        save_pretrained(folder, model, written, {"dataset": "toy"})
        models[name] = load(folder, raw=name == "raw")
    return models


def test_tokens_have_the_white_space_that_is_in_them(saved: dict[str, SavedModel]) -> None:
    with pytest.raises(UserError, match="--space after needs --by word"):
        score_text("a b", saved["char"], by="token", space="after")


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_its_word(kind: str) -> None:
    """Of odd lines: no token is lost, words have theirs in order, and those of a word spell it."""
    vocabulary, rng = vocabularies()[kind], random.Random(0)
    for _ in range(400):
        line = "".join(rng.choices(ALPHABET, k=rng.randrange(12)))
        words, texts, word_of, ids = cut(line, vocabulary)
        assert words == line.split()
        assert ids == vocabulary.encode(line, eos=False)
        assert word_of == sorted(word_of)
        assert all(0 <= word <= len(words) for word in word_of)
        if kind in ("bpe", "char") and "\\x" not in "".join(texts):
            assert "".join(texts) == line, "as it stood, white space too"
        if kind in ("word", "raw", "moses"):
            spelled = ["".join(t for t, w in zip(texts, word_of, strict=True) if w == place) for place in range(len(words))]
            bare = [word.replace("\x00", "").replace("@-@", "-") for word in words]
            assert [text.replace("@-@", "-").replace("@,@", ",").replace("@.@", ".") for text in spelled] == bare or kind == "word"


@pytest.mark.parametrize("kind", ["raw", "moses", "char", "bpe", "lower", "normal"])
@pytest.mark.parametrize("space", ["before", "after"])
def test_a_words_surprisal_is_the_sum_over_its_tokens(saved: dict[str, SavedModel], kind: str, space: str) -> None:
    model = saved[kind]
    if space == "after" and model.vocabulary.level == "word":
        with pytest.raises(UserError, match="--space after is for models whose tokens have white space in them"):
            score_text(TEXT, model, space=space)
        return
    rows = score_text(TEXT, model, by="word", eos=True, space=space)
    assert [row.word for row in rows] == [word for line in TEXT.splitlines() for word in [*line.split(), "<eos>"]]
    vocabulary, expected = model.text_vocabulary, []
    whole = [i for i in range(len(vocabulary)) if i == vocabulary.eos or vocabulary.decode([i])[:1].isspace()]
    for number, line in enumerate(TEXT.splitlines(), 1):
        words, _, word_of, ids = cut(line, vocabulary)
        ids = [*ids, vocabulary.eos]
        log_p, _ = token_by_token(model.model, vocabulary.eos, ids)
        for place, word in enumerate([*words, "<eos>"]):
            own = [i for i, of in enumerate([*word_of, len(words)]) if of == place]
            p = sum(log_p[i, ids[i]].item() for i in own)
            if space == "after":  # Pimentel and Meister (2024): p(pieces) p(a word ends after them) / p(one ended before them)
                p += log_p[own[-1] + 1, whole].logsumexp(-1).item() if own[-1] + 1 < len(ids) else 0
                p -= log_p[own[0], whole].logsumexp(-1).item() if own[0] else 0
            unk = sum(ids[i] == vocabulary.unk for i in own)
            entropy = -(log_p[own[0]].exp() * log_p[own[0]]).sum().item() / math.log(2)
            expected.append((number, place + 1, word, -p / math.log(2), unk, entropy, len(own)))
    for row, told in zip(rows, expected, strict=True):
        assert (*row[:3], row.unk, row.pieces) == (*told[:3], told[4], told[6])
        assert row.surprisal == pytest.approx(told[3], rel=1e-5, abs=1e-5)
        assert row.entropy == pytest.approx(told[5], rel=1e-5, abs=1e-5)
    assert sum(row.surprisal for row in rows) == pytest.approx(
        sum(row.surprisal for row in score_text(TEXT, model, by="token", eos=True)), rel=1e-6
    ), "both share out the same bits"


def test_what_has_a_row(saved: dict[str, SavedModel]) -> None:
    for kind, first in {"word": "token", "raw": "word", "char": "word", "bpe": "word"}.items():
        assert score_text("the cat", saved[kind])[0]._fields[2] == first
    rows = score_text("The Dog", saved["lower"], by="token")
    assert "".join(row.token for row in rows) == "The Dog", "text, as it stood, not the symbols of bytes"
    assert {row.word_id for row in rows} == {1, 2}
    assert score_text("日", saved["bpe"], by="token")[0].token.startswith("\\xe6")
    frame = pandas.DataFrame(score_text("the cat\nsat", saved["word"], add=["length", "previous"]))
    assert frame["length"].tolist() == [3, 3, 3]
    assert frame["previous_length"].tolist()[1] == 3
    assert frame["previous_surprisal"].isna().tolist() == [True, False, True]
    assert frame["previous_surprisal"][1] == frame["surprisal"][0]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


STIMULI = [
    {"item": "7", "text": "the cat | sat on | the mat .", "unk": "x", "labels": "a a b b c c c"},
    {"item": "8", "text": "the\ncats", "unk": "y", "labels": "d d"},
]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_the_users_columns_stay_and_sentences_are_rows(saved: dict[str, SavedModel], tmp_path: Path, form: str) -> None:
    source, output = tmp_path / f"a.{form}", tmp_path / "out"
    frame = pandas.DataFrame(STIMULI)
    if form in ("csv", "tsv"):
        frame.to_csv(source, sep="\t" if form == "tsv" else ",", index=False)
    elif form == "parquet":
        frame.to_parquet(source)
    else:
        source.write_text(frame.to_json(orient="records", lines=form == "jsonl"))
    cli.score([str(source), "--model", str(saved["bpe"].folder), "--output", str(output)])
    rows = table(output)
    assert [(row["sentence_id"], row["item"], row["unk_input"]) for row in rows] == [("1", "7", "x")] * 9 + [("2", "8", "y")] * 2
    assert [row["word_id"] for row in rows[-2:]] == ["1", "3"], "the end of a line counts"
    cli.score([str(source), "--model", str(saved["bpe"].folder), "--output", str(output), "--format", "parquet"])
    assert pandas.read_parquet(output)["item"].tolist() == ["7"] * 9 + ["8"] * 2


def test_columns_of_the_user_that_have_names_of_ours(saved: dict[str, SavedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved["word"].folder)
    (tmp_path / "a.csv").write_text("word_input,text,word,surprisal_bpe\nb,cat,a,c\n")
    wide = ["--by", "word", "--layout", "wide", "--model", ".", "--model", str(saved["bpe"].folder)]
    cli.score([str(tmp_path / "a.csv"), *wide, "--output", str(tmp_path / "out")])
    (row,) = table(tmp_path / "out")
    assert [row[name] for name in ("word", "word_input", "word_input_input", "surprisal_bpe_input")] == ["cat", "b", "a", "c"]
    assert "surprisal_word" in row, "a folder named by a dot has its own name"
    monkeypatch.chdir(shutil.copytree(saved["word"].folder, tmp_path / "run/model").parent)
    cli.score([str(tmp_path / "a.csv"), "--by", "word", "--layout", "wide", "--model", "model", "--output", str(tmp_path / "out")])
    assert "surprisal_run" in (tmp_path / "out").read_text(), "and so has the run that one stands in"
    shutil.copytree(saved["word"].folder, tmp_path / "1-layer.é")
    cli.score([str(tmp_path / "a.csv"), *wide[:4], f"--model={tmp_path}/1-layer.é", "--output", str(tmp_path / "out.CSV")])
    assert "surprisal_1_layer_é" in pandas.read_csv(tmp_path / "out.CSV").columns, "as a formula of R takes it"
    (tmp_path / "1_layer-é").symlink_to(tmp_path / "1-layer.é")
    with pytest.raises(UserError, match=r"--layout wide has columns of the same name for two of 1-layer\.é, 1_layer-é"):
        cli.score([str(tmp_path / "a.csv"), *wide[:4], f"--model={tmp_path}/1-layer.é", f"--model={tmp_path}/1_layer-é"])


def test_a_column_of_several_types_is_none_of_parquet(saved: dict[str, SavedModel], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "cat", "note": 1}\n{"text": "cat", "note": "x"}\n')
    with pytest.raises(UserError, match="note has others later: use --format jsonl"):
        cli.score([str(tmp_path / "a.jsonl"), f"--model={saved['word'].folder}", "--format=parquet", f"--output={tmp_path / 'out'}"])


@pytest.mark.parametrize("kind", ["word", "raw", "bpe"])
def test_regions_are_sums_of_words(saved: dict[str, SavedModel], tmp_path: Path, kind: str) -> None:
    marked = [row | {"text": str(row["text"]).replace("\n", "|")} for row in STIMULI]
    plain = [row | {"text": row["text"].replace(" |", "").replace("|", " ")} for row in marked]
    words = pandas.DataFrame(score_text("\n".join(row["text"] for row in plain), saved[kind], by="word"))
    for name, rows, option in (("marked", marked, "|"), ("labelled", plain, "labels")):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        common = [str(tmp_path / f"{name}.jsonl"), "--model", str(saved[kind].folder), *["--raw"] * (kind == "raw")]
        cli.score([*common, "--regions", option, "--output", str(tmp_path / name), "--add", "length"])
        regions = table(tmp_path / name)
        sizes = [2, 2, 3, 1, 1] if name == "marked" else [2, 2, 3, 2]
        assert sum(sizes) == len(words)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        for region, end, size in zip(regions, ends, sizes, strict=True):
            own = words.iloc[end - size : end]
            assert region["region"] == " ".join(own["word"])
            assert region["length"] == str(len(region["region"]))
            assert float(region["surprisal"]) == pytest.approx(own["surprisal"].sum(), rel=1e-5)
            assert int(region["pieces"]) == own["pieces"].sum()
    assert [row["label"] for row in regions] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", ["word", "raw", "bpe"])
def test_a_table_with_a_row_for_each_word(saved: dict[str, SavedModel], tmp_path: Path, kind: str) -> None:
    """Rows that have one value of a column side by side are one line, and each row comes back once, in its place."""
    words = [(item, zone, word) for item, line in enumerate([*TEXT.splitlines(), "the cat"]) for zone, word in enumerate(line.split())]
    words[1:3] = [(0, 1, "cat  sat")]  # one region of two words
    pandas.DataFrame(words, columns=["item", "zone", "word"]).to_csv(
        tmp_path / "a.tsv", sep="\t", index=False, quoting=csv.QUOTE_NONNUMERIC
    )
    common = [
        str(tmp_path / "a.tsv"),
        "--text_column=word",
        "--line_by=item",
        f"--model={saved[kind].folder}",
        *["--raw"] * (kind == "raw"),
    ]
    cli.score([*common, "--output", str(tmp_path / "out"), "--eos=true", "--add", "length", "previous"])
    rows = table(tmp_path / "out")
    alone = score_text("\n".join([*TEXT.splitlines(), "the cat"]), saved[kind], by="word", eos=True)
    bits = [row.surprisal for row in alone]
    bits[1:3] = [sum(bits[1:3])]
    assert [float(row["surprisal"]) for row in rows] == pytest.approx(bits, rel=1e-5)
    own = [row for row in rows if row["region"] != "<eos>"]
    assert [(int(row["item"]), int(row["zone"]), row["region"]) for row in own] == [(i, z, " ".join(word.split())) for i, z, word in words]
    assert [row["sentence_id"] for row in own] == [str(item + 1) for item, _, _ in words]
    assert [row["item"] for row in rows if row["region"] == "<eos>"] == ["0", "1", "2"]
    assert [row["previous_unk"] for row in rows] == [
        "" if row["region_id"] == "1" else before["unk"] for before, row in zip([{}, *rows], rows, strict=False)
    ]
    cli.score([*common, "--output", str(tmp_path / "out"), "--reset=never"])
    bits = [row.surprisal for row in score_text("\n".join([*TEXT.splitlines(), "the cat"]), saved[kind], by="word", reset="never")]
    assert float(table(tmp_path / "out")[-1]["surprisal"]) == pytest.approx(bits[-1], rel=1e-5), "the line before is its context"


@pytest.mark.parametrize("kind", ["raw", "bpe"])
def test_a_table_of_items_in_conditions(saved: dict[str, SavedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """An item has a sentence in each condition, one of them with an empty region; each is scored alone."""
    sentences = {
        ("1", "a"): ["the cat", "sat", "on the mat ."],
        ("1", "b"): ["the cat", "", "on the mat ."],
        ("2", "a"): ["cats", "sat", "!"],
    }
    rows = [(*key, n, text) for key, texts in sentences.items() for n, text in enumerate(texts, 1)]
    pandas.DataFrame(rows, columns=["item", "condition", "region", "text"]).to_csv(tmp_path / "a.csv", index=False)
    common = [str(tmp_path / "a.csv"), f"--model={saved[kind].folder}", *["--raw"] * (kind == "raw"), "--output", str(tmp_path / "out.csv")]
    cli.score([*common, "--line_by", "item", "condition"])
    told = pandas.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert told["sentence_id"].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert told["region_input"].tolist() == told["region_id"].tolist() == [1, 2, 3] * 3
    alone = [score_text(" ".join(filter(None, texts)), saved[kind], by="word") for texts in sentences.values()]
    words = [row.surprisal for row in (*alone[0], *alone[1], *alone[2])]
    sizes = [len(text.split()) for *_, text in rows]
    sums = [sum(words[sum(sizes[:i]) : sum(sizes[: i + 1])]) for i in range(9)]
    assert told["surprisal"].tolist() == pytest.approx(sums, rel=1e-5)
    assert (told["surprisal"][4], told["pieces"][4], told["entropy"][4]) == (0, 0, "")
    assert caplog.messages == []
    cli.score([*common, "--line_by", "item"])
    assert "lines with a column that counts from 1, but not once: 1; --line_by takes several columns" in caplog.text
    caplog.clear()
    lengths = pandas.DataFrame({"item": 1, "length": [3, 2, 1, 1, 2, 3, 4], "text": "the"})
    lengths.to_csv(tmp_path / "b.csv", index=False)
    cli.score([str(tmp_path / "b.csv"), *common[1:], "--line_by", "item"])
    assert caplog.messages == [], "numbers that do not count"
    cli.score([*common, "--line_by", "region"])
    assert "each line has one row: for --line_by the rows of a line stand side by side" in caplog.text
    with pytest.raises(UserError, match=r"--line_by part: .*/a.csv has no such column, only item, condition, region"):
        cli.score([*common, "--line_by", "item", "part"])
    marked = score_text("the cat | | on the mat .", saved[kind], regions="|")
    assert [(row.region_id, row.region, row.pieces > 0) for row in marked] == [
        (1, "the cat", True),
        (2, "", False),
        (3, "on the mat .", True),
    ]


@pytest.mark.parametrize("text", ["| the cat |\n\n|", "the cat | "])
def test_a_mark_at_a_lines_end_parts_nothing(saved: dict[str, SavedModel], text: str) -> None:
    assert [(row.sentence_id, row.region) for row in score_text(text, saved["bpe"], regions="|")] == [(1, "the cat")]


def test_a_column_says_where_a_document_begins(saved: dict[str, SavedModel], tmp_path: Path) -> None:
    stories = {"one": ["the cat sat .", "the mat\nthe cat"], "two": ["the cats !"]}
    lines = [(story, text) for story, texts in stories.items() for text in texts]
    pandas.DataFrame(lines, columns=["story", "text"]).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    cli.score([str(tmp_path / "a.jsonl"), f"--model={saved['bpe'].folder}", "--reset=story", "--output", str(tmp_path / "out.tsv")])
    alone = [row for texts in stories.values() for row in score_text("\n".join(texts), saved["bpe"], by="word", reset="never")]
    told = table(tmp_path / "out.tsv")
    assert [row["word"] for row in told] == [row.word for row in alone]
    assert [float(row["surprisal"]) for row in told] == pytest.approx([row.surprisal for row in alone], rel=1e-5)
    pandas.DataFrame(lines[:2], columns=["line", "text"]).to_csv(tmp_path / "c.csv", index=False)
    cli.score([str(tmp_path / "c.csv"), f"--model={saved['bpe'].folder}", "--output", str(tmp_path / "out.tsv")])
    (first, *_) = [row for row in table(tmp_path / "out.tsv") if row["sentence_id"] == "2"]
    assert first["surprisal"] == str(score_text("the mat", saved["bpe"], by="word")[0].surprisal), (
        "a column called line is none of --reset line"
    )
    (tmp_path / "b.txt").write_text("the cat\n")
    with pytest.raises(UserError, match=r"--reset story: it is none of line, document, never, and .*b\.txt has no such column"):
        cli.score([str(tmp_path / "b.txt"), f"--model={saved['bpe'].folder}", "--reset=story"])


@pytest.mark.parametrize("kind", ["raw", "char", "bpe"])
@pytest.mark.parametrize("eos", [False, True])
def test_a_row_for_a_sentence(saved: dict[str, SavedModel], kind: str, eos: bool) -> None:
    rows = score_text(TEXT + "\n", saved[kind], by="sentence", eos=eos, add=["length"])
    words = pandas.DataFrame(score_text(TEXT + "\n", saved[kind], by="word", eos=eos)).groupby("sentence_id")
    assert [(row.sentence_id, row.sentence, row.length) for row in rows[:2]] == [
        (n, line, len(line)) for n, line in enumerate(TEXT.splitlines(), 1)
    ]
    assert len(rows) == 2 + eos, "an empty line has nothing but its end"
    with pytest.raises(UserError, match="--add frequency previous2 is of words: leave it out with --by sentence"):
        score_text(TEXT, saved[kind], by="sentence", add=["previous2", "frequency"])
    (blank,) = score_text("the cat ", saved[kind], by="sentence")
    assert blank.surprisal == pytest.approx(sum(row.surprisal for row in score_text("the cat ", saved[kind], by="word")), rel=1e-5)
    for name in ("surprisal", "unk", "pieces"):
        assert [getattr(row, name) for row in rows] == pytest.approx(words[name].sum().tolist(), rel=1e-5)
    assert [row.entropy for row in rows] == words["entropy"].first().tolist()


@pytest.mark.parametrize("kind", ["raw", "moses", "char", "bpe"])
def test_punctuation_at_a_words_ends_and_the_words_before(saved: dict[str, SavedModel], kind: str) -> None:
    line = "the cat, (sat) well-known ... the cat!"
    words = score_text(line, saved[kind], by="word", add=["punctuation", "previous2", "previous3"])
    tokens = score_text(line, saved[kind], by="token")
    marks = dict.fromkeys(range(1, 8), 0.0)
    for token in tokens:
        inner = token.token.strip() in ("-", "@-@")
        if not inner and token.token.strip() and not any(map(str.isalnum, token.token)):
            marks[token.word_id] += token.surprisal
    assert [row.punctuation for row in words] == pytest.approx(list(marks.values()), rel=1e-5)
    assert words[0].punctuation == words[3].punctuation == 0 < words[1].punctuation < words[1].surprisal
    (whole,) = score_text(line, saved[kind], by="sentence", eos=True, add=["punctuation"])
    assert whole.punctuation == words[-1].punctuation > 0, "the end of the line is no mark"
    assert words[4].punctuation == pytest.approx(words[4].surprisal) or kind == "char", "a word of marks alone; a blank is none of them"
    assert [row.previous2_surprisal for row in words] == [None, None, *(row.surprisal for row in words[:-2])]
    assert [row.previous3_unk for row in words] == [None] * 3 + [row.unk for row in words[:-3]]
    assert [row.previous3_punctuation for row in words] == [None] * 3 + [row.punctuation for row in words[:-3]]
    with pytest.raises(UserError, match="--add punctuation needs --by word"):
        score_text(line, saved[kind], by="token", add=["punctuation"])


def test_what_may_be_meant_otherwise_is_told(saved: dict[str, SavedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, out = f"--model={saved['bpe'].folder}", str(tmp_path / "out.jsonl")
    (tmp_path / "a.csv").write_text("item,text\n1,the cat\n2, \n3,NA\n")
    cli.score([str(tmp_path / "a.csv"), model, "--output", out])
    assert [message.partition("a.csv: ")[2] for message in caplog.messages] == [
        "sentences without text: 1",
        "texts that are NA, scored as a word: 1; leave the cell empty if nothing is meant",
    ]
    assert [json.loads(line)["item"] for line in Path(out).read_text().splitlines()] == ["1", "1", "3"]
    caplog.clear()
    (tmp_path / "a.txt").write_text("1\tthe cat\n\tNA\n")
    (tmp_path / "b.txt").write_text("the\tcat\n\nNA\n")
    cli.score([str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), model, "--output", out])
    (message,) = caplog.messages
    assert message.endswith("a.txt: each line has a tab; a table is read as one if its name ends with .tsv")
    assert {Path(json.loads(line)["file"]).name for line in Path(out).read_text().splitlines()} == {"a.txt", "b.txt"}


def test_a_row_for_each_word_that_cannot_be(saved: dict[str, SavedModel], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,text\n1,the\n1, \n")
    (tmp_path / "a.txt").write_text("the\n")
    model = f"--model={saved['word'].folder}"
    for name, options, message in (
        ("a.csv", ["--line_by=story"], "--line_by story: .*/a.csv has no such column, only item"),
        (
            "a.txt",
            ["--line_by=item"],
            r"--line_by item: .*/a.txt has no such column, nor any other beside its text \(a table has some: .csv, ",
        ),
        (
            "a.csv",
            ["--line_by=item", "--regions=|"],
            "--regions parts lines into regions, and --line_by makes lines of them: leave one out",
        ),
        ("a.csv", ["--line_by=item", "--by=word"], "--line_by has a row for each region: leave out --by word"),
        ("a.csv", ["--line_by=item", "--format=neural-complexity"], "neural-complexity's table is of words and one model"),
        ("a.csv", ["--by=region"], "--by region needs --regions or --line_by"),
    ):
        with pytest.raises(UserError, match=message):
            cli.score([str(tmp_path / name), model, *options, f"--output={tmp_path / 'out'}"])
        assert not (tmp_path / "out").exists()


def test_several_models(saved: dict[str, SavedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    kinds = ("word", "char", "bpe")
    models = [word for kind in kinds for word in ("--model", str(saved[kind].folder))]
    for layout in ("long", "wide"):
        cli.score([str(tmp_path / "a.txt"), *models, "--layout", layout, "--output", str(tmp_path / layout), "--html", str(tmp_path / "p")])
        told = capsys.readouterr().err.splitlines()[-3:]
        assert [line.partition(":")[0] for line in told] == list(kinds)
        assert all("unknown" in line and "bits each, ppl" in line for line in told)
    alone = {kind: score_text(TEXT, saved[kind], by="word") for kind in kinds}
    long, wide = table(tmp_path / "long"), table(tmp_path / "wide")
    for kind, rows in alone.items():
        assert [row[f"surprisal_{kind}"] for row in wide] == [str(row.surprisal) for row in rows]
        assert [row["surprisal"] for row in long if row["model"] == kind] == [str(row.surprisal) for row in rows]
    assert (tmp_path / "p").read_text().count('<div class="side">') == 2
    with pytest.raises(UserError, match="--layout wide needs --by word"):
        cli.score([str(tmp_path / "a.txt"), *models, "--layout=wide", "--by=token"])


def test_frequency_is_of_the_training_text(tmp_path: Path, text_folder: Path) -> None:
    text = (text_folder / "train.txt").read_text()
    vocabulary, counts = Vocabulary.build([text]), text.split()
    save_pretrained(tmp_path, LSTMLanguageModel(ModelConfig(4, 4), len(vocabulary)), vocabulary, {"dataset": text_folder.name})
    saved = load(tmp_path, dataset=str(text_folder))
    (row, *_) = score_text("w1, w2", saved, by="word", add=["frequency"])
    per_million = 1e6 / (len(counts) + len({*counts}))
    assert row.frequency == pytest.approx(math.log10((counts.count("w1") + 1) * per_million), abs=1e-6)
    (_, upper) = score_text("w2 W1", saved, by="word", add=["frequency", "previous"])
    assert upper.frequency == pytest.approx(math.log10(per_million), abs=1e-6), "upper case is another word"
    assert upper.previous_frequency == pytest.approx(math.log10((counts.count("w2") + 1) * per_million), abs=1e-6)
    rows = score_text("w1's | W1, | w1 w2 | w1.", saved, raw=True, regions="|", add=["frequency"])
    assert [each.frequency for each in rows] == [None, upper.frequency, None, row.frequency], "some are several words in the training text"
    assert score_text("w\u200b1", saved, by="word", add=["frequency"], normalize=True)[0].frequency == row.frequency


def test_nothing_is_unknown_in_silence(saved: dict[str, SavedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("the c\u200bat nai\u0308ve, foreign words cat\u00ad Dog\u2019s\n")
    result = evaluate(saved["word"], text=tmp_path / "a.txt")
    assert result.unknown == 6
    assert "85.71% unknown" in result.line(), "of 7 targets"
    assert result.figures()["unknown"] == 6
    cli.score([str(tmp_path / "a.txt"), "--model", str(saved["word"].folder), "--output", str(tmp_path / "out")])
    assert len(caplog.messages) == 4, "each once"
    for odd, many in (caplog.messages[:2], caplog.messages[2:]):
        assert "words are not what they look like (4): 'c\\u200bat' is not 'cat' (U+200B ZERO WIDTH SPACE); " in odd
        assert "; straight quotes help, which --raw takes where the model knows them better; --normalize helps" in odd
        assert "% of the tokens are <unk>" in many
    caplog.clear()
    rows = score_text("the c\u200bat cat\u00ad", saved["word"], normalize=True)
    assert [(row.token, row.unk) for row in rows] == [("the", 0), ("c\u200bat", 0), ("cat\u00ad", 0)]
    assert caplog.messages == []


@pytest.mark.parametrize(("words", "straight"), [(["don", "'t", "t", "\u2019"], True), (["\u2019", "don", "'t", "t"], False)])
def test_raw_reads_a_curly_apostrophe_as_the_model_writes_it(
    words: list[str], straight: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that comes first in its vocabulary, where the most frequent tokens do. The table shows the word as it stood."""
    vocabulary = Vocabulary(["<unk>", "<eos>", *words, "I"])
    save_pretrained(tmp_path, LSTMLanguageModel(ModelConfig(4, 4), len(vocabulary)), vocabulary, {"dataset": "toy"})
    curly, plain = (score_text(f"I don{mark}t", tmp_path, by="word", raw=True) for mark in ("\u2019", "'"))
    assert [(row.word, row.pieces) for row in curly] == [("I", 1), ("don\u2019t", 2 if straight else 3)]
    assert ([row.surprisal for row in curly] == [row.surprisal for row in plain]) == straight
    assert [row.token for row in score_text("don\u2019t", tmp_path, by="token", raw=True)][-1] == ("\u2019t" if straight else "t")
    assert caplog.messages == []


@pytest.mark.parametrize(("rare", "told"), [(11, False), (990, False), (1010, True)])
def test_a_curly_quote_that_the_model_knows_but_seldom_saw(rare: int, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids go by frequency."""
    words = ["<unk>", "<eos>", "yes", '"', *(f"w{i}" for i in range(1100))]
    words[rare] = "\u201c"
    save_pretrained(tmp_path, LSTMLanguageModel(ModelConfig(4, 4), len(words)), Vocabulary(words), {"dataset": "toy"})
    (tmp_path / "a.txt").write_text("\u201c yes\n", "utf-8")
    cli.score([str(tmp_path / "a.txt"), "--model", str(tmp_path), "--output", str(tmp_path / "out")])
    assert ("'\u201c' is not '\"'" in caplog.text) == told
