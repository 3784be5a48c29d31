"""What a repository shows of its runs: records, README's table of them, the model that is given away."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from huggingface_hub import CardData, ModelCard

from lstmlm import Config, UserError, evaluate, load_config
from lstmlm.config import flatten
from lstmlm.data.sources import subset_of
from lstmlm.model.pretrained import load
from scripts import measure_protocols
from scripts.publish_model import publish_model
from scripts.publish_results import command, publish_results
from scripts.publish_results import main as publish_main
from scripts.results_table import results_table, with_table
from tests.helpers import ROOT, fresh_train, small_arguments

RESULTS = sorted(path.parent for path in (ROOT / "results").rglob("run.json"))


@pytest.fixture(scope="module")
def trained(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fresh_train(load_config(small_arguments(text_folder, folder, "--train.max_steps=9")))
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_record_holds_the_run_and_no_place(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "small"
    publish_results(run, folder)
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert json.loads((folder / "summary.json").read_bytes()) == json.loads((run / "summary.json").read_bytes())
    record = json.loads((folder / "run.json").read_bytes())
    assert record["interruptions"] == 0
    assert torch.__version__.startswith(record["versions"]["torch"]), "which of its builds the metadata need not say"
    assert record["parameters"] == load(run).model.num_parameters
    written = load_config(["--config", str(folder / "config.yaml")])
    assert load_config(shlex.split(record["command"])[2:]) == written
    assert (written.model.hidden_size, written.train.max_steps) == (12, 9)
    places = [str(tmp_path.parent), str(Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["dataset"]).parent)]
    assert [path for path in folder.iterdir() for place in places if place in path.read_text()] == []
    publish_results(run, folder, "Owner/name")
    assert load_config(["--config", str(folder / "config.yaml")]).data.dataset == "Owner/name"


def test_a_record_needs_figures_and_a_place_below_results(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="holds no run with a checkpoint and a line of metrics"):
        publish_results(run, tmp_path / "results/small")
    for name in ("../small", "."):
        monkeypatch.setattr("sys.argv", ["publish_results.py", str(run), "--name", name])
        with pytest.raises(UserError, match=f"--name {re.escape(name)} is not below results/"):
            publish_main()


def write_evaluation(folder: Path, name: str, **changed: Any) -> None:
    (folder / "evaluations").mkdir(exist_ok=True)
    result = {"split": "test", "ppl": 2.459, "columns": 1, "protocol": "cache", "reset": "never"} | changed
    (folder / "evaluations" / f"{name}.json").write_text(json.dumps(result))


def test_a_run_that_goes_on_has_a_record_too(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "small"
    publish_results(run, folder)
    (run / "summary.json").unlink()  # as a run does that goes on for more epochs
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "ep')
    publish_results(run, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 9
    best = min(line["valid/ppl"] for line in lines if "valid/ppl" in line)
    begin = f"| [small](results/small) (in epoch 1 of 2) | {load(run).model.num_parameters:,} |"
    assert results_table(tmp_path / "results").splitlines()[5].startswith(f"{begin} {best:.2f} / - (10 columns) |  |")
    write_evaluation(folder, "static-1-test", protocol="static", ppl=4.25)
    assert results_table(tmp_path / "results").splitlines()[5].startswith(f"{begin} - / 4.25 |  |")


def test_the_table_shows_final_figures_and_evaluations(run: Path, tmp_path: Path) -> None:
    (tmp_path / "results/toy").mkdir(parents=True)
    (tmp_path / "results/toy/run.json").write_text("{}")  # left out
    folder = tmp_path / "results" / "small"
    publish_results(run, folder)
    write_evaluation(folder, "cache-test")
    write_evaluation(folder, "cache-validation", split="validation", ppl=3.5)
    write_evaluation(folder, "cache-10-test", columns=10, ppl=4.5)
    write_evaluation(folder, "cache-line-test", reset="line", ppl=5.5)
    write_evaluation(folder, "both-test", protocol="cache+dynamic", ppl=2.25)
    summary = json.loads((run / "summary.json").read_bytes())
    *_, heads, _, row, _, name, command = results_table(tmp_path / "results").splitlines()
    assert heads == "| run | parameters | static | cache | dynamic | cache+dynamic | minutes of training |"
    static = " / ".join(f"{summary[split]['ppl']:.2f}" for split in ("valid", "test"))
    expected = f"| [small](results/small) | {summary['parameters']:,} | {static} | 3.50 / 2.46 |  | - / 2.25 | 0 ("
    assert row.startswith(expected)
    (folder / "summary.json").write_text(json.dumps(summary | {"ranks": 3}))
    assert "| 0 (3 x " in results_table(tmp_path / "results")
    assert (name, command) == ("    # small", f"    {json.loads((folder / 'run.json').read_bytes())['command']}")


def test_measuring_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cache": {"theta": 1.5}, "dynamic": {"lr": 0.25}, "cache+dynamic": {}}
    asked: list[list[str]] = []

    def evaluate(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        options = words[words.index("--json") + 1 :]
        asked.append(options)
        result: dict[str, Any] = {"split": options[-1], "ppl": 2.0, "bpc": 1.0, "seconds": 1, "settings": {}}
        if "--tune" in options:
            validation = result | {"split": "validation"}
            result |= {"split": "test", "settings": found[options[1]], "tuning": {}, "validation": validation}
        return subprocess.CompletedProcess(words, 0, json.dumps(result))

    monkeypatch.setattr("subprocess.run", evaluate)
    monkeypatch.setattr("sys.argv", ["measure", "--model", "m", "--output", str(tmp_path / "out")])
    assert measure_protocols.main() == 0
    files = [f"{name}-{split}.json" for name in ("static-1", "static-10", *found) for split in ("validation", "test")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files}
    assert asked[-1][-4:] == ["--theta", "1.5", "--lr", "0.25"], "the search of both begins where the other two ended"
    (tmp_path / "out/cache+dynamic-test.json").unlink()
    assert measure_protocols.main() == 0
    assert asked[7:] == [asked[6]]


def test_no_run_no_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        publish_results(tmp_path, tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("begin", "changes"),
    [
        ([], ["--data.dataset", "toy", "--data.max_size", "9", "--tracking.trackers", "[]", "--tracking.run_name", "a b"]),
        (["--config", "configs/wikitext2-compact.yaml"], ["--optim.betas", "[0.7, 0.99]", "--train.precision", "fp32"]),
    ],
)
def test_the_command_is_what_differs_from_the_nearest_preset(begin: list[str], changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config([*begin, *changes])
    assert shlex.split(command(config.to_dict())) == ["python", "scripts/train.py", *begin, *changes]


def test_the_readme_shows_what_results_hold() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, results_table(ROOT / "results")) == readme, "run scripts/results_table.py"


def named(config: Config) -> dict[str, Any]:
    """What `data` says, with the subset that null means."""
    return config.to_dict()["data"] | {"subset": subset_of(config.data)}


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_published_result_reproduces_and_names_no_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    record = json.loads((folder / "run.json").read_bytes())
    ran, recorded = (load_config(words) for words in (shlex.split(record["command"])[2:], ["--config", str(folder / "config.yaml")]))
    assert ran.to_dict() | {"data": named(ran)} == recorded.to_dict() | {"data": named(recorded)}
    config = flatten(yaml.safe_load((folder / "config.yaml").read_bytes()))
    assert not {"data.cache_dir", "train.run_dir"} & config.keys()
    for path in folder.rglob("*"):
        if path.is_file():
            assert not re.search(r'["\s](/root|/home|/work|/tmp|/Users)/', path.read_text()), path


def figures(card: CardData) -> dict[str, float]:
    return {result.dataset_split: result.metric_value for result in card.eval_results}


def test_a_model_to_give_away(run: Path, tmp_path: Path, text_folder: Path) -> None:
    folder = tmp_path / "models" / "small"
    publish_model(run, folder)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        with safetensors.safe_open(run / "model/model.safetensors", "pt") as own:
            assert file.metadata() == own.metadata()
    of_run, card = (ModelCard.load(path / "README.md").data for path in (run / "model", folder))
    summary, told = json.loads((run / "summary.json").read_bytes()), figures(card)
    assert figures(of_run) == {"validation": summary["valid"]["ppl"], "test": summary["test"]["ppl"]}
    assert told["test"] == evaluate(folder, "test", dataset=str(text_folder)).ppl
    assert told == pytest.approx(figures(of_run), abs=0.01)
    assert card.datasets == ["Salesforce/wikitext"]
    assert [path.name for path in folder.iterdir() if str(tmp_path.parent) in path.read_text(errors="replace")] == []


def test_weights_that_16_bits_would_spoil_stay_in_32(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.publish_model.TOLERANCE", 1e-9)
    publish_model(run, tmp_path / "full")
    torch.testing.assert_close(load(tmp_path / "full").model.weights(), load(run).model.weights(), rtol=0, atol=0)
