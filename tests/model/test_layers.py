"""The layers against PyTorch's own."""

import pytest
import torch
from torch import nn

from lstmlm import LSTMLanguageModel
from lstmlm.config import ModelConfig
from lstmlm.model.layers import LSTMLayer


def test_a_recurrent_weight_that_is_handed_in_takes_the_place_of_the_own() -> None:
    torch.manual_seed(0)
    layer, reference = LSTMLayer(5, 7).double(), nn.LSTM(5, 7).double()
    reference.load_state_dict(layer.state_dict())
    mask = torch.rand(28, 7, dtype=torch.float64).round_().mul_(2)
    reference.weight_hh_l0.data *= mask
    inputs = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    h, c = torch.randn(2, 3, 7, dtype=torch.float64)
    raw, outputs, state = layer(inputs, (h, c), None, layer.weight_hh_l0 * mask)
    expected, (h, c) = reference(inputs, (h[None], c[None]))
    assert outputs is raw
    torch.testing.assert_close((raw, *state), (expected, h[0], c[0]))
    ours = torch.autograd.grad(raw.square().sum(), [inputs, *layer.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [inputs, *reference.parameters()])
    for i, (a, e) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, e * mask if i == 2 else e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_is_carried_on_in_the_models_precision(dtype: torch.dtype) -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=6, hidden_size=6), 9).to(dtype)
    tokens = torch.arange(8).view(4, 2)
    _, whole = model.hidden(tokens, model.initial_state(2))
    _, state = model.hidden(tokens[:2], model.initial_state(2))
    _, state = model.hidden(tokens[2:], state)
    assert state[1][1].dtype == dtype
    torch.testing.assert_close(state, whole)
