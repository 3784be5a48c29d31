"""The ONNX graph computes what PyTorch does, its state carried from call to call."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lstmlm import LSTMLanguageModel, UserError
from lstmlm.export import onnx
from lstmlm.export.onnx import export_onnx
from lstmlm.model.language_model import State
from tests.export.test_transformers import make_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def session(content: bytes) -> Any:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def stacked(state: State) -> dict[str, np.ndarray]:
    size = max(h.shape[1] for h, _ in state)
    wide = [[F.pad(part, (0, size - part.shape[1])) for part in layer] for layer in state]
    return {name: torch.stack([layer[i] for layer in wide]).numpy() for i, name in enumerate("hc")}


@torch.no_grad()
def assert_carried(theirs: Any, model: LSTMLanguageModel, lengths: list[int], columns: int) -> None:
    state = model.initial_state(columns)
    carried = stacked(state)
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        tokens = torch.randint(model.vocab_size, (length, columns), generator=generator)
        expected, state = model.logits(tokens, state)
        logits, h, c = theirs.run(["logits", "new_h", "new_c"], {"tokens": tokens.numpy(), **carried})
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
        carried = {"h": h, "c": c}
    for name, value in stacked(state).items():
        np.testing.assert_allclose(carried[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sizes", [{}, {"num_layers": 3, "hidden_size": 20}, {"num_layers": 1, "hidden_size": 20}, {"embedding_size": 8, "tie_weights": False}]
)
def test_the_state_is_carried_over_100_steps(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = make_model(tmp_path / "own", **sizes)
    export_onnx(tmp_path / "own", tmp_path / "exported")
    theirs = session((tmp_path / "exported/model.onnx").read_bytes())
    assert_carried(theirs, model, [1] * 100, columns=1)
    assert_carried(theirs, model, [7, 1, 30], columns=3)
    assert (tmp_path / "exported/vocab.json").read_bytes() == (tmp_path / "own/vocab.json").read_bytes()


def test_a_model_that_one_file_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "own")
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"one ONNX file holds 1,000: export with --to transformers"):
        export_onnx(tmp_path / "own", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
