"""`lstmlm evaluate` on a small model: what it prints, what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lstmlm import Config, LSTMLanguageModel, UserError, cli, evaluate
from lstmlm.data.corpus import load_corpus
from lstmlm.evaluation.adaptation import CacheSettings, DynamicSettings
from lstmlm.model.pretrained import save_pretrained

Run = Callable[..., dict[str, object]]


@pytest.fixture
def folder(text_folder: Path, tmp_path: Path, small_config: Callable[..., Config]) -> Path:
    """An untrained model of the text folder's vocabulary."""
    config = small_config()
    torch.manual_seed(0)
    vocabulary = load_corpus(config.data).vocabulary
    model = LSTMLanguageModel(config.model, len(vocabulary))
    save_pretrained(
        tmp_path / "model", model, vocabulary, {"dataset": str(text_folder), "subset": None, "level": "word"}
    )
    return tmp_path / "model"


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`lstmlm evaluate --json` in this process."""

    def evaluate_json(*arguments: str) -> dict[str, object]:
        common = ["--model", str(folder), "--cache_dir", str(tmp_path / "cache"), "--json"]
        assert cli.evaluate([*common, *arguments]) == 0
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
    assert (result["split"], result["protocol"], result["columns"], result["settings"]) == (
        "validation",
        "static",
        3,
        {},
    )
    assert float(result["seconds"]) >= 0


def test_each_protocol_with_its_settings(run: Run) -> None:
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
    assert sgd["settings"] == {"rule": "sgd", "lr": 0.1, "decay": 0, "bptt": DynamicSettings().bptt}
    nll = [run()["nll"], sgd["nll"], *(results[protocol]["nll"] for protocol in results)]
    assert len(set(nll)) == 5


def test_from_python(folder: Path, tmp_path: Path, run: Run) -> None:
    common = {"model": folder, "cache_dir": str(tmp_path / "cache")}
    result = evaluate(**common, cache=CacheSettings(50, 0.5, 0.2))
    options = ["--protocol", "cache", "--window", "50", "--theta", "0.5", "--lambda", "0.2"]
    assert result.nll == run(*options)["nll"]
    assert result.token_nll.double().sum().item() == result.nll
    assert len(result.ids) == len(result.token_nll) == result.targets


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--theta", "1"], "--theta: the protocol is static, but only one with cache has that"),
        (["--protocol", "cache", "--lr", "1", "--bptt", "3"], "--lr, --bptt: the protocol is cache"),
        (["--protocol", "cache", "--theta", "-1"], "theta must be a number that is not negative, not -1.0"),
        (["--protocol", "cache", "--lambda", "1.5"], "lambda must be in"),
        (["--protocol", "dynamic", "--rule", "adam"], "there is no rule 'adam': name sgd or rms"),
        (["--protocol", "neural"], "neural"),
        (["--columns", "0"], "columns must be at least 1, not 0"),
        (["--split", "dev"], "there is no split 'dev'"),
    ],
)
def test_wrong_use_is_told(run: Run, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named.replace("(", r"\(")) as error:
        run(*arguments)
    assert error.value.status == 2


def test_a_step_that_is_too_large_is_told(run: Run) -> None:
    with pytest.raises(UserError, match="diverged, choose a smaller lr"):
        run("--protocol", "dynamic", "--rule", "sgd", "--lr", "1e30")
