from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstmlm import LSTMLanguageModel, UserError
from lstmlm.config import ModelConfig
from lstmlm.dropout import make_masks
from lstmlm.model import _lstm_precision

SMALL = ModelConfig(embedding_size=12, hidden_size=12)


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(SMALL, vocab_size=31)


def batch(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(31, (rows, columns), generator=generator), torch.randint(
        31, (rows, columns), generator=generator
    )


def test_reference_model_has_3_52_million_parameters() -> None:
    assert sum(p.numel() for p in LSTMLanguageModel(ModelConfig(), 33_278).parameters()) == 3_522_678


def test_initial_weights() -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=10, hidden_size=20, tie_weights=False, init_range=0.2), 500)
    for weight in (model.embedding.weight, model.decoder.weight):
        assert 0.19 < weight.abs().max() <= 0.2
    assert not model.decoder.bias.any()


def test_equals_a_stacked_lstm_without_dropout(model: LSTMLanguageModel) -> None:
    stacked = nn.LSTM(12, 12, num_layers=2)
    for i, layer in enumerate(model.layers):
        for name, weight in layer.named_parameters():
            getattr(stacked, name.replace("l0", f"l{i}")).data.copy_(weight)
    tokens, targets = batch(9, 4)
    outputs, (h, c) = stacked(F.embedding(tokens, model.embedding.weight))
    logits = F.linear(outputs, model.decoder.weight, model.decoder.bias)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    nll, state = model(tokens, model.initial_state(4), targets)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(torch.stack([h for h, _ in state]), h)
    torch.testing.assert_close(torch.stack([c for _, c in state]), c)
    torch.testing.assert_close(model(tokens, model.initial_state(4))[0], logits)


def test_dropout_is_where_it_belongs(model: LSTMLanguageModel) -> None:
    tokens, targets = batch(5, 3)
    masks = make_masks(SMALL, 1, torch.tensor(0, dtype=torch.int32), 5, range(3))
    assert masks is not None
    x = model.embedding(tokens) * masks.embedding
    for layer, mask in zip(model.layers, masks.layers, strict=True):
        x = layer(x)[0] * mask
    expected = F.cross_entropy(model.decoder(x).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, model.initial_state(3), targets, masks)[0], expected)


def test_two_segments_with_carried_state_are_one_long_segment(model: LSTMLanguageModel) -> None:
    tokens, targets = batch(12, 3)
    whole, state = model(tokens, model.initial_state(3), targets)
    first, middle = model(tokens[:5], model.initial_state(3), targets[:5])
    second, end = model(tokens[5:], middle, targets[5:])
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(end, state)
    reset, _ = model(tokens[5:], model.initial_state(3), targets[5:])
    assert abs(first + reset - whole) > 1e-3, "the state matters"


@pytest.mark.parametrize("through", ["nll", "logits"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_plain_functions(tied: bool, through: str) -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=12, hidden_size=12, tie_weights=tied), 31)
    tokens, targets = batch(7, 4)
    outputs = F.embedding(tokens, model.embedding.weight)
    for layer in model.layers:
        outputs, _ = layer(outputs)
    logits = F.linear(outputs, model.decoder.weight, model.decoder.bias)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    if through == "nll":
        ours, _ = model(tokens, model.initial_state(4), targets)
    else:
        logits, _ = model(tokens, model.initial_state(4))
        ours = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters)
    assert len(parameters) == (10 if tied else 11)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_backward_makes_one_tensor_as_large_as_the_tied_weight() -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=16, hidden_size=16), vocab_size=640)
    tokens, targets = torch.randint(640, (5, 3)), torch.randint(640, (5, 3))
    nll, _ = model(tokens, model.initial_state(3), targets)
    storages = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            storages.update(
                t.untyped_storage().data_ptr()
                for t in tree_leaves(result)
                if isinstance(t, torch.Tensor) and t.numel() >= 640 * 16
            )
            return result

    formed = nll.grad_fn.saved_tensors[1]  # type: ignore[union-attr]
    with Watch():
        nll.backward()
    assert model.embedding.weight.grad is not None
    assert storages - {formed.untyped_storage().data_ptr()} == {
        model.embedding.weight.grad.untyped_storage().data_ptr()
    }


@pytest.mark.parametrize(("precision", "kept"), [(torch.bfloat16, False), (torch.float16, True)])
def test_autocast_gives_no_lstm_of_a_gpu_float16_for_bf16(precision: torch.dtype, kept: bool) -> None:
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", precision)
    try:
        with _lstm_precision("cuda"):
            assert torch.is_autocast_enabled("cuda") == kept
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def test_score_is_the_nll_of_each_target(model: LSTMLanguageModel) -> None:
    tokens, targets = batch(6, 3)
    targets[2, 1] = -100
    logits, state = model(tokens, model.initial_state(3))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    nll, scored_state = model.score(tokens, model.initial_state(3), targets)
    torch.testing.assert_close(nll, expected.detach())
    torch.testing.assert_close(scored_state, state)


def test_tie_is_one_tensor_after_init_load_and_export(model: LSTMLanguageModel, tmp_path: Path) -> None:
    assert model.decoder.weight is model.embedding.weight
    model.save_pretrained(tmp_path, {"dataset": "toy"}, {"step": "3"})
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert [name for name in file.keys() if file.get_tensor(name).shape == (31, 12)] == ["embedding.weight"]  # noqa: SIM118
        assert file.metadata() == {"step": "3"}
    loaded = LSTMLanguageModel.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.embedding.weight
    loaded.load_weights(model.weights())
    assert loaded.decoder.weight is loaded.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tied: bool, tmp_path: Path) -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=8, hidden_size=8, num_layers=3, tie_weights=tied), 17)
    model.save_pretrained(tmp_path, {"dataset": "toy"})
    loaded = LSTMLanguageModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_in_one_flat_buffer_are_saved_apart(model: LSTMLanguageModel, tmp_path: Path) -> None:
    """As cuDNN keeps them on a GPU."""
    expected = {name: weight.clone() for name, weight in model.weights().items()}
    for layer in model.layers:
        parameters = list(layer.parameters())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.data = piece.view_as(p)
    model.save_pretrained(tmp_path, {})
    torch.testing.assert_close(LSTMLanguageModel.from_pretrained(tmp_path).weights(), expected, rtol=0, atol=0)


def test_broken_model_folders(model: LSTMLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model in"):
        LSTMLanguageModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="cannot read the model"):
        LSTMLanguageModel.from_pretrained(tmp_path)
    LSTMLanguageModel(SMALL, 7).save_pretrained(tmp_path / "other", {})
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not those of this model"):
        LSTMLanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a model configuration"):
        LSTMLanguageModel.from_pretrained(tmp_path)
