"""A run that begins with a saved model: its vocabulary, its weights, and what contradicts them; and the memory that a run needs."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lstmlm import Config, LSTMLanguageModel, UserError, Vocabulary, evaluate, load_config, train
from lstmlm.config import ModelConfig
from lstmlm.console import UsageError
from lstmlm.model.pretrained import load, save_pretrained
from lstmlm.runtime import launch
from lstmlm.training.build import _check_memory, build
from tests.helpers import WORDS, Small, SmallConfig, assert_same_run, fresh_train, lose_power, metrics, small_arguments


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    """Text of other words in other shares: some that the source has not seen, in every split."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name, lines in (("train", 60), ("valid", 12), ("test", 12)):
        rows = [" ".join(f"w{i * j % 50}" for j in range(9)) + f" unseen{i % 5}" for i in range(lines)]
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def source(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    fresh_train(load_config(small_arguments(text_folder, folder, "--train.max_steps=4")))
    return folder / "run"


@pytest.fixture
def warm(source: Path, small: Small, other_text: Path, tmp_path: Path) -> Small:
    """Arguments of a run on the other text that begins with the model of a run on the first."""
    shutil.copytree(source, tmp_path / "source")

    def arguments(*overrides: str, run: str = "run") -> list[str]:
        origin = f"--train.init_from={tmp_path / 'source'}"
        return small(f"--data.dataset={other_text}", origin, "--train.eval_columns=1", *overrides, run=run)

    return arguments


def test_a_run_begins_as_good_as_its_source_is(warm: Small, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh_train(load_config(warm("--train.max_steps=3")))
    assert f", begun with {tmp_path / 'source'}" in capsys.readouterr().err
    first = metrics(tmp_path / "run")[0]
    source = evaluate(tmp_path / "source", text=other_text / "valid.txt")
    assert (first["step"], first["epoch"], first["tokens"]) == (0, 0, 0)
    assert first["valid/ppl"] == pytest.approx(source.ppl, rel=1e-6)
    assert str(tmp_path) not in (tmp_path / "run/model/README.md").read_text()
    assert "the vocabulary of the model `" in (tmp_path / "run/model/README.md").read_text()
    assert load_config(["--config", str(tmp_path / "run/config.yaml")]).train.init_from == str(tmp_path / "source")


def test_a_file_of_a_model_is_no_model(warm: Small, tmp_path: Path) -> None:
    """Not even that of its vocabulary, which a run that goes on reads alone."""
    with pytest.raises(UserError, match=r"vocab\.json"):
        fresh_train(load_config(warm(f"--train.init_from={tmp_path}/source/model/vocab.json")))


def test_text_becomes_ids_under_the_vocabulary_of_the_source(warm: Small, other_text: Path, tmp_path: Path) -> None:
    saved = load(tmp_path / "source")
    model, vocabulary = saved.model, saved.vocabulary
    config = launch.resolve_precision(load_config(warm()))
    with launch.started(config) as accelerator:
        own, other = build(launch.resolve_precision(load_config(warm("--train.init_from=null"))), accelerator)
        corpus, train_step = build(config, accelerator)
        weights = train_step.model.weights()
        other.close()
        train_step.close()
    assert corpus.vocabulary.tokens == vocabulary.tokens != own.vocabulary.tokens
    places = {token: i for i, token in enumerate(vocabulary.tokens)}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        text = (other_text / f"{name}.txt").read_text().replace("\n", " <eos> ")
        assert corpus.splits[split].tolist() == [places.get(word, places["<unk>"]) for word in text.split()]
    torch.testing.assert_close(weights, model.weights(), rtol=0, atol=0)


def test_a_model_that_no_step_makes_better_stays_the_best(warm: Small, tmp_path: Path) -> None:
    summary = fresh_train(load_config(warm("--optim.lr=30", "--train.max_steps=3")))
    assert summary["best_step"] == 0
    source, own = (load(tmp_path / run).model.weights() for run in ("source", "run"))
    torch.testing.assert_close(own, source, rtol=0, atol=0)


def test_a_resume_is_exact_and_needs_only_the_vocabulary_of_its_own_model(warm: Small, tmp_path: Path) -> None:
    """As any other run does not need its model's weights, which the checkpoint has."""
    fresh_train(load_config(warm(run="whole")))
    for step in (3, 7):  # before the first checkpoint, and after it
        lose_power(warm("--train.resume=true", run="cut"), step)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "cut/model/model.safetensors").write_bytes(b"damaged")
    fresh_train(load_config(warm("--train.resume=true", run="cut")))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(
    ("vocabulary", "model", "overrides", "told"),
    [
        (Vocabulary(WORDS[:3]), ModelConfig(8, 8, 1), [], "say --model.embedding_size 8 --model.hidden_size 8 --model.num_layers 1$"),
        (
            Vocabulary(WORDS[:3], tokenizer="moses", lowercase=True),
            ModelConfig(12, 12, tie_weights=False),
            ["--data.min_count=2", "--data.max_size=9"],
            "say --model.tie_weights false --data.tokenizer moses --data.lowercase true --data.min_count 1 --data.max_size 3$",
        ),
        # A single tied layer has embedding_size units.
        (Vocabulary(["<unk>", "<eos>", "w"], level="char"), ModelConfig(12, 99, 1), ["--model.num_layers=1"], "say --data.level char$"),
    ],
)
def test_what_contradicts_the_model_is_refused_with_the_options_that_do_not(
    vocabulary: Vocabulary, model: ModelConfig, overrides: list[str], told: str, small: Small, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = LSTMLanguageModel(model, len(vocabulary))
    save_pretrained(tmp_path / "source", source, vocabulary, {"dataset": "toy"})
    arguments = small(f"--train.init_from={tmp_path / 'source'}", *overrides)
    with pytest.raises(UsageError, match=told) as caught:
        fresh_train(load_config(arguments))
    assert not (tmp_path / "run").exists()
    options = str(caught.value).partition("say ")[2].split()
    config: Config = load_config([*arguments, *options])
    config = launch.resolve_precision(config)
    with launch.started(config) as accelerator:
        corpus, train_step = build(config, accelerator)
        train_step.close()
    assert corpus.vocabulary.fingerprint == vocabulary.fingerprint


def test_no_more_is_counted_than_a_run_takes(small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound, in a case worked out by hand: 60 types, E = H = 12, two layers, 20 columns, bptt 10."""
    config = launch.resolve_precision(small_config("--train.threads=1"))
    accelerator = launch.start(config)
    parameters = 60 * 12 + 60 + 2 * (2 * 48 * 12 + 2 * 48)
    assert parameters == sum(p.numel() for p in LSTMLanguageModel(config.model, 60).parameters())
    # Weight, gradient and Adam's two moments; and a checkpoint twice, without the gradient
    need = (16 + 24) * parameters + 20 * 10 * (12 + 2 * 5 * 12) * 4
    for free in (need, need - 1):
        monkeypatch.setattr("lstmlm.training.build.free_memory", lambda device, free=free: free)
        with nullcontext() if free == need else pytest.raises(UserError, match="needs at least"):
            _check_memory(config, 60, 1000, accelerator)


@pytest.mark.parametrize("full", ["cuda", "cpu"])
def test_the_memory_of_a_gpu_and_of_its_host(full: str, small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("cuda", 0), num_processes=2)
    monkeypatch.setattr("lstmlm.training.build.free_memory", lambda device: 0 if device.type == full else 1e12)
    with pytest.raises(UserError, match=rf"of memory \({full}\), and 0\.0 GB are free: .* 10 columns"):
        _check_memory(small_config(), 60, 1000, accelerator)


@pytest.mark.parametrize(
    "sizes", [["--model.hidden_size=65536", "--model.embedding_size=65536"], ["--model.num_layers=124", "--model.hidden_size=24"]]
)
def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(
    sizes: list[str], small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lstmlm.training.build.free_memory", lambda device: 2e7)
    with pytest.raises(UserError, match=r"this run needs at least [\d,.]+ GB of memory \(cpu\), and 0\.0 GB are free: .* parameters"):
        train(small_config(*sizes))
    assert not (tmp_path / "run").exists()
