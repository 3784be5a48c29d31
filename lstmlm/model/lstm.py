"""One LSTM layer for a processor with fast bfloat16 products.

The input's product is one for all rows. The recurrent product goes row by row with a weight packed once, and a row's element-wise
work stays in the processor's cache. Backward gathers the gradients of the gates row by row; each weight's gradient is then one
product over all rows. Gates are in PyTorch's order: i, f, g, o (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lstmlm.model.loss import refuse_second_derivatives


class LSTMFunction(torch.autograd.Function):
    """What `torch.lstm` computes for one layer, with state, cell and element-wise work in the precision of `h`, products and outputs
    in `dtype`.

    Args:
        inputs: (T, B, I).
        h, c: Before the first row, each (B, H), float32 or float64.
        weight_ih: (4 H, I).
        weight_hh: (4 H, H).
        bias: (4 H,), the sum of PyTorch's two.
        dtype: Of the products, of the gates kept for backward and of the outputs.

    Returns:
        The outputs (T, B, H), and h and c after the last row.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns, size = *inputs.shape[:2], h.shape[1]
        x, w_ih, w_hh = inputs.to(dtype).flatten(0, 1), weight_ih.to(dtype), weight_hh.to(dtype)
        gates = (x @ w_ih.T).view(rows, columns, 4 * size)  # of the input alone; then, row by row, the gates
        outputs, cells = h.new_empty(rows + 1, columns, size, dtype=dtype), c.new_empty(rows + 1, columns, size)
        outputs[0], cells[0] = h, c  # before the first row
        row, h, squashed = h.new_empty(columns, 4 * size), torch.empty_like(h), torch.empty_like(c)
        i, f, g, o = row.chunk(4, -1)
        recurrent = _linear(w_hh, columns)
        for t in range(rows):
            torch.add(gates[t], bias, out=row).add_(recurrent(outputs[t]))
            row[:, : 2 * size].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            gates[t] = row
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(cells[t + 1], out=squashed), out=h)
            outputs[t + 1] = h
        ctx.save_for_backward(x, w_ih, w_hh, gates, outputs, cells)
        ctx.dtypes = [argument.dtype for argument in (inputs, h, c, weight_ih, weight_hh, bias)]
        return outputs[1:], h, cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        outputs_grad, h_grad, c_grad = grad_outputs
        x, w_ih, w_hh, gates, outputs, cells = ctx.saved_tensors
        rows, columns, size = gates.shape[0], gates.shape[1], cells.shape[2]
        gates_grad = torch.empty_like(gates)  # of what goes into the gates' nonlinearities
        h_grad, c_grad = h_grad.clone(), c_grad.clone()
        row, row_grad = (cells.new_empty(columns, 4 * size) for _ in range(2))
        i, f, g, o = row.chunk(4, -1)
        i_grad, f_grad, g_grad, o_grad = row_grad.chunk(4, -1)
        squashed, through_output = torch.empty_like(c_grad), torch.empty_like(c_grad)
        recurrent = _linear(w_hh.T, columns)
        sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        for t in reversed(range(rows)):
            row.copy_(gates[t])
            h_grad += outputs_grad[t]
            torch.tanh(cells[t + 1], out=squashed)
            torch.mul(h_grad, o, out=through_output)
            c_grad += tanh_backward(through_output, squashed, grad_input=through_output)
            torch.mul(c_grad, i, out=g_grad)
            torch.mul(c_grad, g, out=i_grad)
            torch.mul(c_grad, cells[t], out=f_grad)
            torch.mul(h_grad, squashed, out=o_grad)
            for grad, gate in ((row_grad[:, : 2 * size], row[:, : 2 * size]), (o_grad, o)):
                sigmoid_backward(grad, gate, grad_input=grad)
            tanh_backward(g_grad, g, grad_input=g_grad)
            gates_grad[t] = row_grad
            c_grad *= f
            h_grad.copy_(recurrent(gates_grad[t]))
        every = gates_grad.flatten(0, 1)  # (T B, 4 H)
        inputs_grad = (every @ w_ih).view(rows, columns, -1) if ctx.needs_input_grad[0] else None
        weight_grads = every.T @ x, every.T @ outputs[:-1].flatten(0, 1)
        grads = inputs_grad, h_grad, c_grad, *weight_grads, every.sum(0, dtype=cells.dtype)
        return *(grad if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)), None


def _linear(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """Multiplies (rows, n) by the transpose of a weight (m, n), which is packed once for all calls where PyTorch can do so."""
    packs = torch.ops.mkldnn
    # Private operators: where a version of PyTorch lacks them, its ordinary product packs the weight at each call.
    if weight.dtype != torch.bfloat16 or not hasattr(packs, "_reorder_linear_weight"):
        return lambda operand: operand @ weight.T
    packed = packs._reorder_linear_weight(weight.contiguous(), rows)
    return lambda operand: packs._linear_pointwise(operand, packed, None, "none", [], "")
