"""Scores of a text against the model alone, token by token, in plain PyTorch."""

import math
import random
from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lstmlm import LSTMLanguageModel, UserError, Vocabulary, score_text
from lstmlm.evaluation import perplexity, surprisal
from lstmlm.evaluation.surprisal import Reader, read_windows
from lstmlm.evaluation.surprisal_tables import ScoreTable, Scoring, score_files, sentences_of
from lstmlm.evaluation.text import Reset
from lstmlm.model.pretrained import SavedModel, load, save_pretrained
from tests.helpers import sharp_model, token_by_token

VOCABULARY = Vocabulary(["<unk>", "<eos>", "=", *(f"w{i}" for i in range(28))])


@pytest.fixture
def saved(tmp_path: Path) -> SavedModel:
    save_pretrained(tmp_path / "model", sharp_model(len(VOCABULARY)), VOCABULARY, {"dataset": "toy"})
    return load(tmp_path / "model")


Row = namedtuple("Row", "sentence_id token_id token surprisal unk entropy rank word_id")


def alone(model: LSTMLanguageModel, lines: list[str], resets: set[int]) -> list[Row]:
    """One token after the other, the state made afresh before the lines (from 0) in `resets`; `<eos>` rows too."""
    rows = []
    for begin, end in pairwise(sorted({*resets, len(lines)})):
        words = [(n + 1, *word) for n in range(begin, end) for word in enumerate([*lines[n].split(), "<eos>"], 1)]
        ids = [VOCABULARY.id_of(word) for _, _, word in words]
        log_p, nll = token_by_token(model, VOCABULARY.eos, ids)
        for (number, place, word), i, own, bits in zip(words, ids, log_p, nll, strict=True):
            entropy = -(own.exp() * own).sum().item() / math.log(2)
            rank = 1 + int((own > own[i]).sum())
            rows.append(Row(number, place, word, bits / math.log(2), int(i == VOCABULARY.unk), entropy, rank, place))
    return rows


def assert_same(ours: list[Row], expected: list[Row]) -> None:
    assert [(*row[:3], row.unk, row.rank) for row in ours] == [(*row[:3], row.unk, row.rank) for row in expected]
    for name in ("surprisal", "entropy"):
        values = [getattr(row, name) for row in ours]
        assert values == pytest.approx([getattr(row, name) for row in expected], rel=1e-5, abs=1e-5)


def text(lines: int, longest: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = [*VOCABULARY.tokens[3:], "strange", "words"]
    return [" ".join(rng.choices(words, k=rng.randrange(longest))) for _ in range(lines)]


@pytest.fixture(params=[(1 << 16, 1 << 12), (1 << 16, 16), (50, 7), (1, 1)], ids=str)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines beyond a window, stretches beyond a segment."""
    monkeypatch.setattr(surprisal, "WINDOW_CHARACTERS", request.param[0])
    monkeypatch.setattr(perplexity, "SEGMENT_TOKENS", request.param[1])


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(("reset", "resets"), [("line", set(range(30))), ("document", {0, 8, 9, 18}), ("never", {0})])
def test_every_score_is_what_the_model_says_of_the_token_alone(saved: SavedModel, reset: Reset, resets: set[int]) -> None:
    lines = text(30, 25)
    lines = [line or "w9" for line in lines]
    lines[7] = lines[8] = lines[17] = ""
    rows = score_text("\n".join(lines), saved, reset, eos=True)
    assert_same(rows, alone(saved.model, lines, resets))
    assert score_text("\n".join([*lines, ""]), saved, reset) == [row for row in rows if row.token != "<eos>"]


@pytest.mark.usefixtures("sizes")
def test_a_title_begins_a_document_and_then_an_empty_line_does_not(saved: SavedModel) -> None:
    lines = ["w5", "", "w4", " = w1 w2 = ", "", "w3 w4 w5", "= = w6 = =", "", "w7", " = w8 =", "w9"]
    assert_same(score_text("\n".join(lines), saved, "document", eos=True), alone(saved.model, lines, {0, 3, 9}))


@pytest.mark.parametrize(("reset", "resets"), [("document", {0, 2, 4}), ("never", {0})])
def test_a_text_begins_a_document(saved: SavedModel, reset: Reset, resets: set[int]) -> None:
    texts = [["= w1 =", "w2 w3"], ["w4", "", "w5"]]
    scoring = Scoring(reset=reset, eos=True)
    sources = [("text", lambda lines=lines: ((line, {}) for line in lines)) for lines in texts]
    windows = read_windows(sentences_of(sources, scoring), [Reader(saved)])
    table = ScoreTable([saved], [""], scoring, ["file"])
    rows = [row for window in windows for row in table.rows(window)]
    assert {row[-1] for row in rows} == {"text"}, "the name of the file, where there are several"
    assert_same([Row(*row[:-1]) for row in rows], alone(saved.model, [line for lines in texts for line in lines], resets))


def test_enormous_weights_are_told(saved: SavedModel) -> None:
    with torch.no_grad():
        saved.model.decoder.bias[3] = math.inf
    with pytest.raises(UserError, match="scores are not finite: its weights are far too large"):
        score_text("w1", saved)


def test_a_window_is_all_that_is_held(saved: SavedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surprisal, "WINDOW_CHARACTERS", 300)
    taken = 0

    def endless() -> Iterator[tuple[str, dict[str, str]]]:
        nonlocal taken
        while True:
            taken += 1
            yield "w1 w2 w3 w4", {}

    windows = read_windows(sentences_of([("text", endless)], Scoring()), [Reader(saved)])
    assert [len(next(windows)) for _ in range(3)] == [25, 25, 25]
    assert taken <= 76


def test_what_is_refused(saved: SavedModel) -> None:
    for refused in ("", "\n", " \n \n"):
        with pytest.raises(UserError, match="no text"):
            score_text(refused, saved)
    with pytest.raises(UserError, match=r"add must be a list, such as \['length'\]"):
        score_text("w1", saved, add="length")
    with pytest.raises(UserError, match="--reset sentence: it is none of line, document, never, and text has no such column"):
        score_text("w1", saved, "sentence")
    with pytest.raises(UserError, match="--regions w: there is no such column"):
        score_text("w1", saved, regions="w")
    with pytest.raises(UserError, match="form must be one of tsv, csv, jsonl, parquet, neural-complexity, not 'xml'"):
        score_files(["absent.txt"], form="xml")  # type: ignore[arg-type]
