"""The layers: a tied embedding, and an LSTM layer with dropout on its output.

Shapes: T time, B columns, E embedding, H hidden, V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlm.model.loss import refuse_second_derivatives


class LayerState(NamedTuple):
    """What an LSTM layer carries from row to row, each (B, H), float32 (float64 in a float64 model)."""

    h: Tensor
    c: Tensor


class LSTMLayer(nn.LSTM):
    """One LSTM layer whose output is multiplied by a dropout mask that the caller hands in.

    Args:
        input_size: Units of its input.
        hidden_size: H.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def forward(  # type: ignore[override]
        self, inputs: Tensor, state: LayerState, mask: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, Tensor, LayerState]:
        """Outputs before and after dropout, and the state after the last row.

        Args:
            inputs: (T, B, input_size).
            state: (h, c), each (B, H).
            mask: (T, B, H); None = no dropout.
            weight_hh: The recurrent weight (4 H, H) in place of the module's own, such as its product with a mask; None = its own.
        """
        h, c = state
        self.check_forward_args(inputs, (h[None], c[None]), None)
        recurrent: Any = self.weight_hh_l0 if weight_hh is None else weight_hh
        weights: list[Any] = [self.weight_ih_l0, recurrent, self.bias_ih_l0, self.bias_hh_l0]
        with _lstm_precision(inputs.device.type):
            raw, h, c = torch.lstm(inputs, (h[None], c[None]), weights, True, 1, 0.0, self.training, False, False)
        carried = torch.promote_types(h.dtype, torch.float32)  # the state has no less precision than float32
        return raw, raw if mask is None else raw * mask, LayerState(h[0].to(carried), c[0].to(carried))


class TiedEmbedding(torch.autograd.Function):
    """Embeddings of tokens, and the weight itself for the decoder, as one node of the graph.

    The embeddings' gradient has few rows. One node adds them into the decoder's gradient in place; autograd by itself would first
    write them into zeros of the whole vocabulary's size.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivatives()  # the sum is formed in place
        embeddings_grad, weight_grad = grad_outputs
        (tokens,) = ctx.saved_tensors
        return weight_grad.index_add_(0, tokens.flatten(), embeddings_grad.flatten(0, -2)), None


def _lstm_precision(device: str) -> AbstractContextManager[object]:
    # Autocast runs cuDNN's LSTM in float16, whatever was asked for (AutocastRNN.cpp). Under bf16 the loss is not scaled, so many
    # gradients would lie below float16's smallest normal number. So the LSTM stays in float32 there, with TF32 products
    # (hardware.set_float32_products).
    if device == "cuda" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.autocast(device, enabled=False)
    return nullcontext()
