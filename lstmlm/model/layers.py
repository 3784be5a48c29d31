"""The layers: the embedding of a tied model, and an LSTM layer with dropout on its output.

Shapes: T time, B columns, E embedding, H hidden, V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlm.model.loss import has_matrix_units
from lstmlm.model.lstm import LSTMFunction


class LayerState(NamedTuple):
    """What an LSTM layer carries from row to row, each (B, H), float32 (float64 in a float64 model)."""

    h: Tensor
    c: Tensor


class LSTMLayer(nn.LSTM):
    """One LSTM layer whose output is multiplied by a dropout mask that the caller hands in."""

    def forward(  # type: ignore[override]
        self, inputs: Tensor, state: LayerState, mask: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, Tensor, LayerState]:
        """Outputs before and after dropout, and the state after the last row.

        Args:
            inputs: (T, B, input_size).
            state: (h, c), each (B, H).
            mask: (T, B, H), or (1, B, H) where all rows share it; None = no dropout.
            weight_hh: The recurrent weight (4 H, H) in place of the module's own, such as its product with a mask; None = its own.
        """
        h, c = state
        self.check_forward_args(inputs, (h[None], c[None]), None)
        recurrent: Any = self.weight_hh_l0 if weight_hh is None else weight_hh
        carried = torch.promote_types(h.dtype, torch.float32)  # the state has no less precision than float32
        if _own_kernel(inputs.device.type, self.hidden_size):
            bias: Any = self.bias_ih_l0 + self.bias_hh_l0  # type: ignore[operator]
            raw, h, c = LSTMFunction.apply(inputs, h.to(carried), c.to(carried), self.weight_ih_l0, recurrent, bias, torch.bfloat16)
        else:
            weights: list[Any] = [self.weight_ih_l0, recurrent, self.bias_ih_l0, self.bias_hh_l0]
            with _lstm_precision(inputs.device.type):
                raw, h, c = torch.lstm(inputs, (h[None], c[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)
            h, c = h[0].to(carried), c[0].to(carried)
        return raw, raw if mask is None else raw * mask, LayerState(h, c)


class TiedEmbedding(torch.autograd.Function):
    """Embeddings of tokens, int64 of any shape, and the weight itself, (V, E), for the decoder, as one node of the graph.

    The embeddings' gradient has few rows. One node adds them, in place, into the decoder's gradient, which nobody else sees; autograd
    by itself would first write them into zeros of the whole vocabulary's size.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        embeddings_grad, weight_grad = grad_outputs
        (tokens,) = ctx.saved_tensors
        return weight_grad.index_add_(0, tokens.flatten(), embeddings_grad.flatten(0, -2)), None


def _own_kernel(device: str, size: int) -> bool:
    """Whether an LSTM of this size is faster by `LSTMFunction` than by oneDNN's kernel: large ones under bfloat16, whose backward is slow.

    Measured at 5 to 80 columns (docs/performance.md). A probe of the time would choose by chance, and a resume would round otherwise.
    """
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return device == "cpu" and bf16 and torch.cpu._is_avx512_bf16_supported() and size >= (600 if has_matrix_units() else 1000)


def _lstm_precision(device: str) -> AbstractContextManager[object]:
    # Autocast runs cuDNN's LSTM in float16, whatever was asked for (AutocastRNN.cpp). Under bf16 the loss is not scaled, so many
    # gradients would lie below float16's smallest normal number. So the LSTM stays in float32 there, with TF32 products
    # (hardware.set_float32_products).
    if device == "cuda" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.autocast(device, enabled=False)
    return nullcontext()
