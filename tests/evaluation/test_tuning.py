"""The search for settings: on validation only, within its budget."""

import dataclasses
import json
from pathlib import Path

import pytest

from lstmlm import UserError
from lstmlm import cli as commands
from lstmlm.evaluation import tuning
from lstmlm.evaluation.adaptation import Cache, CacheDynamic, Dynamic
from lstmlm.evaluation.protocol import measure
from lstmlm.evaluation.text import split_text
from lstmlm.evaluation.tuning import tune
from lstmlm.model.pretrained import SavedModel, load


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> SavedModel:
    return load(folder, cache_dir=str(tmp_path / "cache"))


def test_it_ends_where_no_setting_helps_any_more(saved: SavedModel) -> None:
    start = Cache(window=100, theta=3, lambda_=0.5)
    best, figures = tune(saved, start, 500, 300, print)
    assert figures["evaluations"] < 500
    text = split_text(saved, "validation")
    text = dataclasses.replace(text, stream=text.stream[:300])
    assert measure(saved, text, best).ppl == figures["ppl"] < measure(saved, text, start).ppl
    assert isinstance(best, Cache)
    assert best.window == 100
    for theta, lambda_ in ((1.15, 1), (1 / 1.15, 1), (1, 1.15), (1, 1 / 1.15)):
        near = Cache(window=100, theta=best.theta * theta, lambda_=best.lambda_ * lambda_)
        assert measure(saved, text, near).ppl > figures["ppl"] * 0.999


def test_it_looks_at_validation_only_and_keeps_its_budget(saved: SavedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, splits = [], []
    monkeypatch.setattr(tuning, "measure", lambda *arguments: scored.append(arguments[1]) or measure(*arguments))
    monkeypatch.setattr(tuning, "split_text", lambda *arguments: splits.append(arguments[1]) or split_text(*arguments))
    told: list[str] = []
    with pytest.raises(UserError, match=r"no setting that the search tried gave a finite perplexity: .*smaller --lr"):
        tune(saved, CacheDynamic(window=50, rule="sgd", lr=1e30, bptt=5, columns=2), 4, 200, told.append)
    assert len(scored) == len(told) == 4
    start = CacheDynamic(window=50, rule="sgd", lr=0.5, bptt=5, columns=2)
    best, figures = tune(saved, start, 6, 200, told.append)
    assert figures["evaluations"] == 6
    assert len(scored) == len(told) == 10
    assert {len(text.stream) for text in scored} == {200}
    assert set(splits) == {"validation"}
    assert best.columns == 2
    again, same = tune(saved, start, 6, 200, print)
    assert (again, same["ppl"]) == (best, figures["ppl"])


def test_a_text_that_is_missing_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/valid.txt").write_text("w1 w2\n")
    saved, told = load(folder, dataset=str(tmp_path / "texts"), cache_dir=str(tmp_path / "cache")), list[str]()
    with pytest.raises(UserError, match=r"^split 'train' is missing"):
        tune(saved, Dynamic(), 4, 200, told.append)
    assert not told


def test_of_both_the_caches_settings_are_searched(saved: SavedModel) -> None:
    """Those of dynamic evaluation are searched by themselves."""
    start = CacheDynamic(window=50, theta=3, lambda_=0.5, rule="sgd", lr=0.5, bptt=5)
    found, _ = tune(saved, start, 12, 200, print)
    assert dataclasses.replace(found, theta=3, lambda_=0.5) == start
    assert found.settings["lambda"] < 0.5
    assert tune(saved, Dynamic(rule="sgd", lr=0.01, bptt=5), 12, 200, print)[0].settings["lr"] > 0.01


def test_the_command_scores_test_once_with_what_it_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(folder), "--cache_dir", str(tmp_path / "cache"), "--protocol", "cache", "--json"]
    assert commands.evaluate([*common, "--tune", "--evaluations", "5", "--tune_tokens", "200", "--window", "60"]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("evaluation ")]
    assert len(lines) == 5
    assert "theta" in lines[0]
    result = json.loads(captured.out)
    assert (result["split"], result["protocol"]) == ("test", "cache")
    tuning = result["tuning"]
    assert (tuning["split"], tuning["tokens"], tuning["evaluations"]) == ("validation", 200, 5)
    options = [word for name, value in result["settings"].items() for word in (f"--{name}", str(value))]
    for split, expected in {"test": result, "validation": result["validation"]}.items():
        assert commands.evaluate([*common, *options, "--split", split]) == 0
        assert json.loads(capsys.readouterr().out)["nll"] == expected["nll"]
    assert result["settings"]["window"] == 60
    words = [word for word in common if word != "--json"]
    assert commands.evaluate([*words, "--tune", "--evaluations", "1", "--tune_tokens", "200", "--breakdown"]) == 0
    validation, test, *groups = capsys.readouterr().out.splitlines()
    assert (validation.partition(": ")[0], test.partition(": ")[0]) == ("validation", "test")
    assert "<eos>" in {group.split()[0] for group in groups}
    assert sum(float(group.split()[-4].removesuffix("%")) for group in groups) == pytest.approx(100, abs=0.3)
