import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lstmlm import LSTMLanguageModel
from lstmlm.config import ModelConfig
from lstmlm.model import layers
from lstmlm.model.dropout import make_masks
from lstmlm.model.layers import _lstm_precision
from tests.helpers import Watch
from tests.model.test_layers import needs_bf16

SMALL = ModelConfig(embedding_size=12, hidden_size=12)


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(SMALL, vocab_size=31)


def batch(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(31, (rows, columns), generator=generator), torch.randint(31, (rows, columns), generator=generator)


def test_initial_weights(model: LSTMLanguageModel) -> None:
    assert model.decoder.weight is model.embedding.weight
    model.load_weights(LSTMLanguageModel(SMALL, vocab_size=31).weights())
    assert model.decoder.weight is model.embedding.weight
    assert LSTMLanguageModel(ModelConfig(), 33_278).num_parameters == 3_522_678
    model = LSTMLanguageModel(ModelConfig(embedding_size=10, hidden_size=20, tie_weights=False, init_range=0.2), 500)
    for weight in (model.embedding.weight, model.decoder.weight):
        assert 0.19 < weight.abs().max() <= 0.2
    assert not model.decoder.bias.any()


DROPOUT = {"dropout": 0.3, "dropout_types": 0.3, "dropout_weights": 0.5, "dropout_locked": True}
RECIPE = ModelConfig(embedding_size=12, hidden_size=20, num_layers=3, activation_penalty=2.0, temporal_penalty=0.5, **DROPOUT)


@pytest.mark.parametrize(
    ("precision", "own_kernel"), [(torch.float32, False), *(pytest.param(torch.bfloat16, own, marks=needs_bf16) for own in (False, True))]
)
def test_every_regulariser_is_where_it_belongs(precision: torch.dtype, own_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients against plain functions: a type is dropped in the embedding alone, weights in the recurrence alone; AR counts
    places with a target, on the dropped output; TAR differences between two of them, on the raw output (Merity et al., 2017)."""
    monkeypatch.setattr(layers, "_own_kernel", lambda device, size: own_kernel)
    torch.manual_seed(0)
    model = LSTMLanguageModel(RECIPE, 31)
    assert [layer.hidden_size for layer in model.layers] == [20, 20, 12]
    tokens, targets = batch(6, 3)
    targets[5, 1:] = targets[4:, 2] = -100
    masks = make_masks(RECIPE, 1, torch.tensor(0, dtype=torch.int32), tokens, 0)
    assert masks is not None
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        nll, (activation, temporal), state = model(tokens, model.initial_state(3), targets, masks)
        x = model.embedding(tokens) * masks.embedding
        for layer, mask, kept in zip(model.layers, masks.layers, masks.weights, strict=True):
            weights = {**dict(layer.named_parameters()), "weight_hh_l0": layer.weight_hh_l0 * kept}
            raw, _ = functional_call(nn.LSTM(layer.input_size, layer.hidden_size), weights, x)
            x = raw * mask
        logits = F.linear(x, model.embedding.weight, model.decoder.bias).float()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert state[0].h.dtype == state[0].c.dtype == torch.float32
    places = [(t, b) for b, rows in enumerate([6, 5, 4]) for t in range(rows)]
    ar = sum(2.0 * x[place].float().square().mean() for place in places)
    change = raw.float().diff(dim=0).square().mean(-1)
    tar = sum(0.5 * change[t - 1, b] for t, b in places if t)
    close = {"rtol": 1e-5, "atol": 1e-6} if precision == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(torch.stack([nll, activation, temporal]), torch.stack([expected, ar, tar]), **close)
    parameters = list(model.parameters())
    ours, plain = (torch.autograd.grad(sum(terms), parameters) for terms in ([nll, activation, temporal], [expected, ar, tar]))
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).norm() <= close["rtol"] * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_segments_with_carried_state_are_one_long_segment(model: LSTMLanguageModel, dtype: torch.dtype) -> None:
    model.to(dtype)
    tokens, targets = batch(12, 3)
    whole, _, state = model(tokens, model.initial_state(3), targets)
    first, _, middle = model(tokens[:5], model.initial_state(3), targets[:5])
    second, _, end = model(tokens[5:], middle, targets[5:])
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(end, state)
    assert end[1][1].dtype == dtype
    reset, _, _ = model(tokens[5:], model.initial_state(3), targets[5:])
    assert abs(first + reset - whole) > 1e-3, "the state matters"


@pytest.mark.parametrize("tied", [True, False])
def test_equals_a_stacked_lstm_without_dropout(tied: bool) -> None:
    torch.manual_seed(0)
    model, stacked = LSTMLanguageModel(ModelConfig(embedding_size=12, hidden_size=12, tie_weights=tied), 31), nn.LSTM(12, 12, num_layers=2)
    for i, layer in enumerate(model.layers):
        for name, weight in layer.named_parameters():
            delattr(stacked, name.replace("l0", f"l{i}"))
            setattr(stacked, name.replace("l0", f"l{i}"), weight)
    tokens, targets = batch(9, 4)
    targets[2, 1] = -100
    outputs, state = stacked(F.embedding(tokens, model.embedding.weight))
    logits = F.linear(outputs, model.decoder.weight, model.decoder.bias)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    nll, penalty, ours = model(tokens, model.initial_state(4), targets)
    scores, _, scored = model.score(tokens, model.initial_state(4), targets)
    own_logits, _ = model.logits(tokens, model.initial_state(4))
    torch.testing.assert_close((nll, scores, own_logits), (expected.sum(), expected.detach(), logits))
    assert not penalty.any()
    for carried in (ours, scored):
        torch.testing.assert_close(tuple(torch.stack(part) for part in zip(*carried, strict=True)), state)
    parameters = list(model.parameters())
    assert len(parameters) == (10 if tied else 11)
    own_nll = F.cross_entropy(own_logits.flatten(0, 1), targets.flatten(), reduction="sum")
    of_nll, of_logits, plain = (torch.autograd.grad(value, parameters) for value in (nll, own_nll, expected.sum()))
    torch.testing.assert_close(of_nll, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_logits, plain, rtol=1e-4, atol=1e-5)


def test_backward_makes_one_tensor_as_large_as_the_tied_weight() -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=16, hidden_size=16), vocab_size=640)
    tokens, targets = torch.randint(640, (5, 3)), torch.randint(640, (5, 3))
    nll, _, _ = model(tokens, model.initial_state(3), targets)
    storages: set[int] = set()
    formed = nll.grad_fn.saved_tensors[1]  # type: ignore[union-attr]
    with Watch(lambda func, args, made: storages.update(t.untyped_storage().data_ptr() for t in made if t.numel() >= 640 * 16)):
        nll.backward()
    assert model.embedding.weight.grad is not None
    assert storages - {formed.untyped_storage().data_ptr()} == {model.embedding.weight.grad.untyped_storage().data_ptr()}


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
