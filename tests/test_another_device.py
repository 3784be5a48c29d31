"""Training, evaluation and generation on a device that is not the CPU: a stand-in for a GPU, whose branches of the code these are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import Vocabulary, generate_texts, load, load_config, score_text
from lstmlm.evaluation import adaptation
from lstmlm.evaluation.adaptation import Cache, CacheDynamic, Dynamic, gradient_rms
from lstmlm.evaluation.protocol import Static, measure
from lstmlm.evaluation.text import file_text
from lstmlm.model.pretrained import SavedModel, save_pretrained
from tests.another_device import Away
from tests.helpers import RECIPES, WORDS, Small, SmallConfig, build_step, forget_accelerate, fresh_train, interrupted, metrics, sharp_model

DEVICE = "ACCELERATE_TORCH_DEVICE"
TEXT = "\n".join(" ".join(f"w{(place * place + line) % 29}" for place in range(line % 9)) for line in range(20)) + "\n"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_step_is_that_of_a_cpu_and_never_waits(
    recipe: list[str], small_config: SmallConfig, another_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for device in (another_device.type, "cpu"):
        monkeypatch.setenv(DEVICE, device)
        forget_accelerate()
        train_step = build_step(small_config(*recipe, "--train.log_every=1000"))
        assert train_step.state[0].h.device.type == device
        windows = list(train_step.windows(epoch=0))
        Away.waits.clear()
        for number in (0, 1, len(windows) - 1):  # the last one is shorter
            train_step(windows[number], step=number, segment=number)
        assert Away.waits == []
        results += train_step.read()
    assert [figure for result in results[:3] for figure in result] == pytest.approx([f for r in results[3:] for f in r], rel=1e-6)


def test_a_run_that_is_resumed_is_that_of_a_cpu(
    small: Small, another_device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = [*RECIPES["adamw"], "--data.batch_size=80", "--train.epochs=2"]
    monkeypatch.setenv(DEVICE, another_device.type)
    interrupted(small, "elsewhere", recipe, [(3, None)])
    monkeypatch.setenv(DEVICE, "cpu")
    fresh_train(load_config(small(*recipe, run="cpu")))
    for line, other in zip(metrics(tmp_path / "elsewhere"), metrics(tmp_path / "cpu"), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert (tmp_path / "elsewhere" / "samples.jsonl").read_bytes() == (tmp_path / "cpu" / "samples.jsonl").read_bytes()


@pytest.fixture
def saved(tmp_path: Path) -> SavedModel:
    save_pretrained(tmp_path / "model", sharp_model(31, 16), Vocabulary(WORDS), {"dataset": "toy"})
    return load(tmp_path / "model", device="cpu")


SGD = Dynamic(rule="sgd", columns=3)
PROTOCOLS = [Static(), Static(columns=5), Static(reset="line"), Cache(window=30), Cache(reset="line"), Dynamic(), SGD, CacheDynamic()]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: f"{protocol.name} {protocol.columns} {protocol.reset}")
def test_scores_are_those_of_a_cpu(
    protocol: Static, saved: SavedModel, another_device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    text = file_text(saved, tmp_path / "text.txt")
    monkeypatch.setattr(adaptation, "training_rms", lambda model: gradient_rms(model.model, text.stream))
    moved = load(tmp_path / "model", device=another_device)
    ours, expected = (measure(model, text, protocol).token_nll for model in (moved, saved))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_texts_and_surprisals_are_those_of_a_cpu(saved: SavedModel, another_device: torch.device, tmp_path: Path) -> None:
    moved = load(tmp_path / "model", device=another_device)
    assert isinstance(moved.model.embedding.weight, Away)
    options: dict[str, Any] = {"max_len": 20, "seed": 3, "top_k": 20, "lines": 2}
    ours, expected = (generate_texts(["w1 w2", "w3"], 3, model=model, **options) for model in (moved, saved))
    assert ours == expected
    for row, other in zip(score_text(TEXT, moved), score_text(TEXT, saved), strict=True):
        assert (row.token, row.rank) == (other.token, other.rank)
        assert (row.surprisal, row.entropy) == pytest.approx((other.surprisal, other.entropy), rel=1e-4)
