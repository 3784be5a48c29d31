"""The model that the package carries: used where none is named, and as good as its card says."""

import json
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lstmlm import UserError, cli, generate_text, score_text
from lstmlm.config import DataConfig
from lstmlm.data.corpus import load_split
from lstmlm.evaluation.perplexity import evaluate_stream
from lstmlm.model.pretrained import BUNDLED, load
from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(not BUNDLED.exists(), reason="no model is published yet")


def test_it_continues_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = generate_text("Once upon a time", max_len=30, temperature=0.8)
    assert text.startswith("Once upon a time ")
    assert f"using the model that comes with lstmlm, {BUNDLED.name}" in capsys.readouterr().err
    most_likely = generate_text("He was born in the United", max_len=1, temperature=0)
    assert most_likely in ("He was born in the United States", "He was born in the United Kingdom")


RAW = "In 1999, a well-known writer lived in New York."
CUT = "In 1999 , a well @-@ known writer lived in New York ."


def test_raw_english_is_scored_as_wikitext_was_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = score_text(RAW, BUNDLED, raw=True)
    assert [row.word for row in words] == RAW.split()
    assert not any(row.unk for row in words)
    for name, text in (("raw.txt", RAW), ("cut.txt", CUT)):
        (tmp_path / name).write_text(f"{text}\n")
        pair = {"UID": "u", "sentence_good": text, "sentence_bad": text.replace("lived", "live")}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(pair))
    printed = []
    for name, *raw in (("raw.txt", "--raw"), ("cut.txt",)):
        place = str(tmp_path / name)
        assert cli.score([place, "--model", BUNDLED.name, "--by", "token", *raw]) == 0
        assert cli.pairs([f"{place}.jsonl", "--model", str(BUNDLED), "--json", *raw]) == 0
        assert cli.evaluate(["--text", place, "--model", str(BUNDLED), "--json", *raw]) == 0
        *table, summary, figures = capsys.readouterr().out.splitlines()
        scores = [line.split("\t")[3:7] for line in table]  # all but the text and its word's place
        printed.append((scores, json.loads(summary), json.loads(figures)["nll"]))
    assert printed[0] == printed[1]
    with pytest.raises(UserError, match="--raw and --normalize are for --text"):
        cli.evaluate(["--split", "test", "--raw"])


def test_it_stays_small_and_alone_in_the_wheel() -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size < 18e6
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lstmlm"]
    assert [files for files in packaged if files.startswith("models/")] == [f"models/{BUNDLED.name}/*"]


@pytest.mark.slow
def test_it_has_the_perplexity_of_its_card(wikitext: str, tmp_path: Path) -> None:
    saved = load(BUNDLED)
    model, vocabulary = saved.model, saved.vocabulary
    stream, _ = load_split(DataConfig(dataset=wikitext, cache_dir=str(tmp_path)), "test", vocabulary)
    told = {r.dataset_split: r.metric_value for r in ModelCard.load(BUNDLED / "README.md").data.eval_results}
    # The card's figure is that of one column; ten begin with a zero state ten times in 245,568 targets.
    assert evaluate_stream(model, stream, columns=10).ppl == pytest.approx(told["test"], rel=1e-3)
