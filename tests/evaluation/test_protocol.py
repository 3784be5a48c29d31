"""`lstmlm evaluate` on a small model: what it prints, what it refuses."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from lstmlm import UserError, Vocabulary, cli, evaluate, load_config, train
from lstmlm.evaluation import perplexity
from lstmlm.evaluation.adaptation import Dynamic
from lstmlm.evaluation.breakdown import breakdown
from lstmlm.evaluation.protocol import Measurement, Static, measure
from lstmlm.evaluation.text import split_text
from lstmlm.model.pretrained import load
from tests.helpers import ROOT, fresh_train, token_by_token

Run = Callable[..., dict[str, object]]


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`lstmlm evaluate --json` in this process."""

    def evaluate_json(*arguments: str) -> dict[str, object]:
        common = ["--cache_dir", str(tmp_path / "cache"), "--json"]
        model = [] if "--model" in arguments else ["--model", str(folder)]
        assert cli.evaluate([*common, *model, *arguments]) == 0
        result: dict[str, object] = json.loads(capsys.readouterr().out)
        return result

    return evaluate_json


def test_a_result_says_how_it_was_obtained(run: Run, text_folder: Path) -> None:
    result = run("--split", "validation", "--columns", "3")
    text = (text_folder / "valid.txt").read_text()
    assert result["characters"] == len(text)
    assert result["bpc"] == pytest.approx(float(result["nll"]) / math.log(2) / len(text))
    assert result["ppl"] == pytest.approx(math.exp(float(result["nll"]) / int(result["targets"])))
    assert result["loss"] == pytest.approx(math.log(result["ppl"]))
    assert (result["split"], result["protocol"], result["columns"], result["settings"]) == ("validation", "static", 3, {})
    assert float(result["seconds"]) >= 0


def test_perplexity_per_word(
    run: Run, text_folder: Path, tmp_path: Path, small: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a character model: by its own scores and a count of words; the same for a split, for a file, and at the end of training."""
    fresh_train(load_config(small("--data.level=char", "--train.max_steps=5", run="char")))
    compared = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("compare"))
    for reset, unscored in (("never", 1), ("line", 0)):
        split = run("--model", str(tmp_path / "char"), "--split", "test", "--reset", reset)
        text = (text_folder / "test.txt").read_text()
        words = sum(len(line.split()) + 1 for line in text.splitlines())
        assert split["words"] == words
        assert split["tokens"] == split["characters"] == len(text)
        assert split["word_ppl"] == pytest.approx(math.exp(float(split["nll"]) / (words - unscored)), rel=1e-12)
        file = run("--model", str(tmp_path / "char"), "--text", str(text_folder / "test.txt"), "--reset", reset)
        assert file["word_ppl"] == pytest.approx(split["word_ppl"], rel=1e-6)
        if reset == "never":
            summary = json.loads((tmp_path / "char/summary.json").read_text())
            assert summary["test"]["word_ppl"] == pytest.approx(split["word_ppl"], rel=1e-6)
            assert summary["test"]["bpc"] == pytest.approx(split["bpc"], rel=1e-6)
            assert f"test ppl per word {split['word_ppl']:.2f}, {split['bpc']:.4f} bits" in compared
    (tmp_path / "one.txt").write_text(2000 * "w")
    assert run("--model", str(tmp_path / "char"), "--text", str(tmp_path / "one.txt"))["word_ppl"] is None, "JSON knows no infinity"
    words_model = run("--split", "test")
    assert words_model["word_ppl"] == words_model["ppl"], "the tokens are the words"


def test_each_protocol_with_its_settings(run: Run, folder: Path, tmp_path: Path) -> None:
    cache = {"window": 50, "theta": 0.5, "lambda": 0.2}
    dynamic = {"rule": "rms", "lr": 0.001, "decay": 0.01, "epsilon": 0.002, "bptt": 7}
    options = {
        protocol: [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        for protocol, settings in {"cache": cache, "dynamic": dynamic, "cache+dynamic": cache | dynamic}.items()
    }
    results = {protocol: run("--protocol", protocol, *given) for protocol, given in options.items()}
    assert results["cache"]["settings"] == cache
    assert results["dynamic"]["settings"] == dynamic
    assert results["cache+dynamic"]["settings"] == cache | dynamic
    assert [results[protocol]["protocol"] for protocol in results] == list(results)
    sgd = run("--protocol", "dynamic", "--rule", "sgd", "--lr", "0.1", "--decay", "0")
    assert sgd["settings"] == {"rule": "sgd", "lr": 0.1, "decay": 0, "bptt": Dynamic().settings["bptt"]}
    nll = [run()["nll"], sgd["nll"], *(results[protocol]["nll"] for protocol in results)]
    assert len(set(nll)) == 5
    result = evaluate(folder, cache_dir=str(tmp_path / "cache"), protocol="cache", window=50, theta=0.5, lambda_=0.2)
    assert result.nll == results["cache"]["nll"] == result.token_nll.double().sum().item()
    assert len(result.ids) == len(result.token_nll) == result.targets


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--theta", "1"], "protocol static has no setting --theta"),
        (["--protocol", "cache", "--lr", "1", "--bptt", "3"], "protocol cache has no setting --bptt, --lr"),
        (["--protocol", "cache", "--lambda", "1.5"], "lambda must be at least 0 and below 1, not 1.5"),
        (["--protocol", "dynamic", "--rule", "adam"], "rule must be one of sgd, rms, not adam"),
        (["--protocol", "neural"], "neural"),
        (["--reset", "line", "--columns", "2"], "--reset line scores stretches in parallel already: leave out --columns"),
        (["--reset", "line", "--protocol", "dynamic"], "carries what it learned across a reset: leave out --reset line"),
        (["--text", "a.txt", "--split", "test"], "--text and --split: the text is in place of the split"),
        (["--text_column", "a"], "--text_column is for --text"),
        (["--protocol", "dynamic", "--rule", "sgd", "--epsilon", "1"], "protocol dynamic with rule sgd has no setting --epsilon"),
        (["--text", "."], ". is a folder: name one file, or the folder with --dataset"),
        (["--tune", "--split", "test"], "searches on validation and then scores test once"),
        (["--tune"], "--tune: protocol static has no settings to search"),
        (["--tune", "--protocol", "cache", "--reset", "line"], "--tune needs --reset never, not line"),
        (["--evaluations", "3"], "--evaluations and --tune_tokens need --tune"),
        (["--tune", "--protocol", "cache", "--tune_tokens", "0"], "at least 2 tokens, not 0"),
        (["--columns", "0"], "columns must be at least 1 "),
        (["--split", "dev"], "there is no split 'dev'"),
        (["--output", "a.csv"], "must end with .parquet"),
    ],
)
def test_wrong_use_is_told(run: Run, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)) as error:
        run(*arguments)
    assert error.value.status == 2


def test_a_step_that_is_too_large_is_told(run: Run) -> None:
    with pytest.raises(UserError, match="diverged, choose a smaller --lr"):
        run("--protocol", "dynamic", "--rule", "sgd", "--lr", "1e30")


DOCUMENTS = ["w0 w1 w2", "w3", " = w5 w6 = ", "w1 w2", "", " = = w1 = = ", "w3 w4", " = w7 = ", "w2 w2 w2 w2"]


@pytest.mark.parametrize(("reset", "sizes"), [("line", [1] * 9), ("document", [2, 5, 2])])
def test_stretches_are_scored_as_if_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: str, sizes: list[int]
) -> None:
    monkeypatch.setattr(perplexity, "PIECE_TOKENS", 11)
    monkeypatch.setattr(perplexity, "SEGMENT_TOKENS", 6)
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS) + "\n")
    result = evaluate(folder, text=tmp_path / "a.txt", reset=reset)
    ends = list(accumulate(sizes))
    assert ends[-1] == len(DOCUMENTS)
    stretches = [DOCUMENTS[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    saved = load(folder)  # each stretch alone, token by token, from the zero state and after `<eos>`
    ids = [[i for line in lines for i in saved.vocabulary.encode(line)] for lines in stretches]
    expected = [nll for own in ids for nll in token_by_token(saved.model, saved.vocabulary.eos, own)[1]]
    assert result.token_nll.tolist() == pytest.approx(expected, rel=1e-5)
    assert (result.targets, result.reset) == (len(result.token_nll), reset)
    lengths = [sum(len(line.split()) + 1 for line in stretch) for stretch in stretches]
    assert result.fresh.nonzero()[:, 0].tolist() == [0, *accumulate(lengths[:-1])]


def test_a_cache_is_emptied_at_a_reset(folder: Path, tmp_path: Path) -> None:
    """Each line scored in a file of its own gives the same."""
    cache, lines = ({"protocol": "cache", "window": 4, "theta": 0.5, "lambda_": 0.3}, ["w0 w1 w0 w1 w0", "w0 w0", "w1 w1 w1"])
    scores = []
    for text in (lines, *([line] for line in lines)):
        (tmp_path / "a.txt").write_text("\n".join(text) + "\n")
        scores.append(evaluate(folder, text=tmp_path / "a.txt", reset="line", **cache).token_nll)
        assert not torch.allclose(scores[-1], evaluate(folder, text=tmp_path / "a.txt", reset="line").token_nll)
    torch.testing.assert_close(scores[0], torch.cat(scores[1:]))


def test_breakdown(run: Run, text_folder: Path, folder: Path, tmp_path: Path) -> None:
    result = run("--split", "validation", "--breakdown", "--columns", "2")
    groups = {group["name"]: group for group in result["breakdown"]}
    words = [word for line in (text_folder / "valid.txt").read_text().splitlines() for word in [*line.split(), "<eos>"]]
    counts = Counter((text_folder / "train.txt").read_text().split())
    measured = evaluate(folder, "validation", 2, cache_dir=str(tmp_path / "cache"))
    expected: dict[str, list[float]] = {}
    for word, nll in zip(words[1:], measured.token_nll.tolist(), strict=True):
        band = "10 to 99 in training" if counts[word] < 100 else "100 to 999 in training"
        expected.setdefault("<eos>" if word == "<eos>" else band, []).append(nll)
    expected["first, from a zero state"] = [measured.token_nll[i].item() for i in (0, (len(words) - 1) // 2)]
    assert set(groups) == set(expected)
    for name, nll in expected.items():
        assert groups[name]["targets"] == len(nll)
        assert groups[name]["nll"] == pytest.approx(sum(nll), rel=1e-6)
        assert groups[name]["ppl"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-6)


def test_numbers_and_unknown_words_have_rows() -> None:
    vocabulary = Vocabulary(["<unk>", "<eos>", "1,024", "7", "3.5", "1990s", ",", "word"])
    ids = torch.tensor([2, 3, 4, 5, 6, 7, 0, 1], dtype=torch.int32)
    nll = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128])
    of_tokens = {"ids": ids, "token_nll": nll, "fresh": torch.zeros(8, dtype=torch.bool)}
    result = Measurement(9, 8, 255, 1, protocol="static", settings={}, reset="never", seconds=0, unknown=1, **of_tokens)
    groups = {group["name"]: (group["targets"], group["nll"]) for group in breakdown(result, vocabulary, ids.repeat(10))}
    assert groups == {"<eos>": (1, 128), "<unk>": (1, 64), "10 to 99 in training": (6, 63), "numbers": (3, 7)}


def test_every_tokens_nll_as_a_file(run: Run, folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    result = run("--reset", "line", "--output", str(tmp_path / "tokens.parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "tokens.parquet")
    assert sum(table["nll"].to_pylist()) == pytest.approx(result["nll"])
    vocabulary = load(folder).vocabulary
    assert [vocabulary.tokens[i] for i in table["token_id"].to_pylist()] == table["token"].to_pylist()
    assert table["token"].to_pylist().count("<eos>") == sum(table["fresh"].to_pylist()) == 30
    told = json.loads(table.schema.metadata[b"lstmlm"])
    assert told == {key: result[key] for key in told}
    assert {"protocol", "reset", "columns", "settings", "ppl"} <= told.keys()


def test_any_file_is_a_text(run: Run, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures of the split of the same text; no shell replaces the `~` of `--text=~/a.jsonl`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    split, path = run("--split", "validation", "--reset", "line"), tmp_path / "a.jsonl"
    rows = [json.dumps({"line": line, "text": "other"}) for line in (text_folder / "valid.txt").read_text().splitlines()]
    path.write_text("\n".join(rows))
    result = run("--text=~/a.jsonl", "--text_column", "line", "--reset", "line")
    assert result["text"] == "~/a.jsonl"
    names = ("tokens", "targets", "nll", "characters", "ppl", "bpc")
    assert {name: result[name] for name in names} == {name: split[name] for name in names}


@pytest.mark.parametrize(
    ("name", "content", "named", "status"),
    [
        ("a.doc", b"w0", "must end with one of", 2),
        ("empty.txt", b"", "nothing to score", 1),
        ("a.txt --text_column line", b"line\nw0\n", "--text_column line: the name of a table ends with .csv", 2),
    ],
)
def test_a_text_that_cannot_be_scored_is_told(run: Run, tmp_path: Path, name: str, content: bytes, named: str, status: int) -> None:
    file, *options = name.split()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=named) as error:
        run("--text", str(tmp_path / file), *options)
    assert error.value.status == status


def test_lines_that_cannot_be_told_apart(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w0 <eos> w1\nw2\n")
    with pytest.raises(UserError, match="has <eos> in its text"):
        run("--text", str(tmp_path / "a.txt"), "--reset", "document")
    assert run("--text", str(tmp_path / "a.txt"))["targets"] == 5


def test_the_example_of_the_docs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--output", "tokens.parquet")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith(str(result["ppl"]))


@pytest.mark.parametrize("protocol", [Static(columns=3), Static(reset="line"), Dynamic(rule="sgd")])
def test_every_target_is_told_as_it_is_scored(folder: Path, tmp_path: Path, protocol: Static) -> None:
    saved, told = load(folder, cache_dir=str(tmp_path / "cache")), []
    result = measure(saved, split_text(saved, "validation"), protocol, told.append)
    assert sum(told) == result.targets


def test_a_model_finds_its_text(
    small: Callable[..., list[str]], text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run keeps the place of its data, its model only the name. A place that is not here is not looked for on the Hub, a file beside the
    model that is no run's configuration is not asked, and other text under the same name is not scored in silence."""
    shutil.copytree(text_folder, tmp_path / "a/texts/book")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.setattr("datasets.load_dataset", None)
    summary = train(load_config(small("--data.dataset=texts/book", "--train.max_steps=2"))).summary
    assert summary is not None
    run, place, ppl = tmp_path / "run", {"cache_dir": str(tmp_path / "cache")}, pytest.approx(summary["test"]["ppl"], rel=1e-9)
    for path in (run / "model/config.json", run / "model/README.md"):
        assert "texts/book" not in path.read_text()
        assert "book" in path.read_text()
    assert evaluate(run, **place).ppl == ppl

    def refused(path: Path, named: str) -> None:
        with pytest.raises(UserError, match=named):
            evaluate(path, **place)

    monkeypatch.chdir(tmp_path / "b")
    refused(run, "was trained on texts/book, which is no file or folder here")
    (run / "config.yaml").write_text("name: my project\n")
    refused(run / "model", "was trained on book, which is no file or folder here: name its text with --dataset")
    assert evaluate(run, dataset=str(tmp_path / "a/texts/book"), **place).ppl == ppl

    shutil.copytree(text_folder, "book")
    Path("book/test.txt").write_text("w1 w2 w3\n" * 9)
    assert evaluate(run, "validation", **place).tokens > 9, "this split is the same"
    refused(run, "split test of book is not the text that the model was trained")
    assert caplog.messages == []
    assert evaluate(run, dataset="book", **place).tokens == 36
    assert caplog.messages == ["split test of book is not the text that the model was trained with"]
    (run / "model/config.json").write_text((run / "model/config.json").read_text().replace('"book"', '"unknown"'))
    refused(run, "the model does not say what it was trained on: name its text with --dataset")
