"""One optimizer update: masks, forward, backward, clip, optimizer. Owns the hidden state, the average and the buffer of losses."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from lstmlm.config import Config
from lstmlm.console import UserError, check
from lstmlm.data.table import Table, Window
from lstmlm.model.dropout import make_masks
from lstmlm.model.language_model import LSTMLanguageModel, State
from lstmlm.runtime.distributed import sum_over_ranks
from lstmlm.training.optimizer import WeightAverage, first_beta, gradient_norm, learning_rate, make_optimizer, set_rates, set_up
from lstmlm.training.segments import segment_ends, steps_per_epoch

WARM_UP = 3  # gradients before one is recorded, so that libraries have chosen their kernels and work space
MAX_SKIPPED = 30  # fp16 halves its scale at each skipped update: after this many in a row, the scale is not the cause


class NotFiniteError(UserError):
    """A loss or a gradient is not finite: the run can't go on."""


class StepResult(NamedTuple):
    """What one step measured, over all ranks."""

    nll: float
    num_targets: int
    grad_norm: float | None  # before clipping; None where fp16 overflowed and the update was skipped


class _Recording(NamedTuple):
    """The gradient of a full segment as a CUDA graph: a replay reads `inputs`, carries the state on and writes the rest."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # tokens, targets
    result: Tensor  # (2,): nll and gradient norm
    gradients: list[Tensor | None]  # of each parameter, clipped


class TrainStep:
    """The update of the parameters by one window of the table, and the state that is carried from window to window.

    Nothing in a call waits for the device (an average under fp16 excepted): losses gather in a buffer of `train.log_every` steps, which
    `read` empties: call it at least as often. Parameters and hidden state keep their places in memory, on which a recorded CUDA
    graph relies.

    Args:
        model: On the CPU; moved here, and wrapped by `accelerator.prepare`.
        table: This rank's columns of the training stream.
        total_steps: Steps of the whole run, for the schedules that end with it.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: LSTMLanguageModel, table: Table, total_steps: int) -> None:
        self.config = config
        self.accelerator = accelerator
        self.table = table
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch(config, table.rows)
        self._own_columns = slice(table.first_column, table.end_column)
        model.to(accelerator.device)  # before the optimizer is made, whose state goes where the parameters are
        self.model: LSTMLanguageModel = model
        self.wrapped_model, self._optimizer = accelerator.prepare(model, make_optimizer(model, config.optim))
        set_up(self._optimizer, model, config.optim)
        self._average = WeightAverage(model, config.optim) if config.optim.average else None
        self._segment = torch.zeros((), dtype=torch.int32, device=accelerator.device)  # whose masks are drawn; a replayed graph reads it
        self._losses = torch.zeros(config.train.log_every, 2, device=accelerator.device)  # nll of this rank, gradient norm
        self._pending: list[tuple[int, int]] = []  # (step, N_step) of the rows of _losses in use
        self._skipped = 0  # updates in a row that fp16 skipped
        self.state: State = model.initial_state(table.local_columns)
        self._order_ddp_buckets()
        # With `cuda_graph` a window is one segment of fixed length, so one with as many targets has the shape that is recorded.
        self._full_targets = config.data.bptt * table.columns
        full = table.targets_in(0, config.data.bptt) == self._full_targets
        graph = config.train.cuda_graph
        check(full or not graph, f"train.cuda_graph records segments of {config.data.bptt} rows, and a column has fewer: leave it false")
        self._recording = self._record() if graph else None

    def __call__(self, window: Window, *, step: int, segment: int, rate_cuts: int = 0) -> None:
        """Do one update.

        Args:
            window: Rows of the table to train on.
            step: Number of this step in the run, from 0.
            segment: Number of the window's first segment in the run, from 0.
            rate_cuts: How often the schedule `plateau` has cut the learning rate.
        """
        optim, data = self.config.optim, self.config.data
        rate = learning_rate(optim, step, self.total_steps, rate_cuts)
        if data.bptt_jitter:  # in proportion to the rows of its segments
            rate *= (window.end - window.first) / (len(window.segments) * data.bptt)
        set_rates(self._optimizer, rate, first_beta(optim, step, self.total_steps))
        measured = self._losses[len(self._pending)].zero_()
        if self._recording is not None and window.num_targets == self._full_targets:
            first, end = window.segments[0]
            self._segment.fill_(segment)
            for place, tensor in zip(self._recording.inputs, self.table.segment(first, end), strict=True):
                place.copy_(tensor)
            self._recording.graph.replay()
            for parameter, gradient in zip(self.model.parameters(), self._recording.gradients, strict=True):
                parameter.grad = gradient  # a step without the graph has put others there
            measured.copy_(self._recording.result)
        else:
            self._optimizer.zero_grad()
            for i, (first, end) in enumerate(window.segments):
                last = i == len(window.segments) - 1
                # Not `accelerator.accumulate`, which makes the ranks meet at every n-th call, or where a data loader ends.
                with nullcontext() if last else self.accelerator.no_sync(self.wrapped_model):
                    self._segment.fill_(segment + i)
                    segment_nll = self._train_segment(*self.table.segment(first, end), window.num_targets, window.num_differences)
                    measured[0] += segment_nll
            measured[1] = self._clip()
        self._optimizer.step()
        # Accelerate's `step_was_skipped` does not see what a fused optimizer leaves out where fp16 has overflowed.
        if self._average is not None and (self.accelerator.scaler is None or math.isfinite(measured[1].item())):
            self._average.update()
        self._pending.append((step, window.num_targets))

    def windows(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """The windows of one pass, from row `start` on, which is the first of one."""
        data, train = self.config.data, self.config.train
        return self.table.cut(segment_ends(data, train.seed, self.table.rows, epoch), train.accumulate, start)

    def read(self) -> list[StepResult]:
        """The steps since the last read, summed over ranks; every rank calls it and gets the same.

        Raises:
            NotFiniteError: On every rank, naming the step whose loss or gradient is not finite; where gradients overflow in fp16, only
                after MAX_SKIPPED steps in a row.
        """
        local = self._losses[: len(self._pending)].cpu()
        # A longer all-reduce may add the ranks in another order. float64 adds float32 numbers exactly, so that changes no bit.
        nll = sum_over_ranks(self.accelerator, local[:, 0].double())
        results = []
        for (step, num_targets), total, norm in zip(self._pending, nll.tolist(), local[:, 1].tolist(), strict=True):
            self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
            may_skip = MAX_SKIPPED if self.accelerator.scaler is not None else 0
            if not math.isfinite(total) or self._skipped > may_skip:
                told = f"the loss or its gradient is not finite at step {step + 1} (nll {total}, gradient norm {norm})"
                raise NotFiniteError(f"{told}: nothing was saved after it; start again in a new train.run_dir with a lower optim.lr")
            results.append(StepResult(total, num_targets, norm if math.isfinite(norm) else None))
        self._pending.clear()
        return results

    def note_validation(self, loss: float) -> bool:
        """Take note of a validation, and tell whether the average of the weights begins with it."""
        return self._average is not None and self._average.note_validation(loss)

    @property
    def awaits_average(self) -> bool:
        """Whether there is to be an average of the weights, which has not begun."""
        return self._average is not None and not self._average.begun

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the average of its weights within the block, where there is one, and after it to the bit what it had before."""
        if self._average is None or self.awaits_average:
            yield
            return
        before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.model.load_weights(self._average.weights)
        try:
            yield
        finally:
            self.model.load_weights(before)

    def reset_state(self) -> None:
        """Zero the hidden state, as at an epoch's start."""
        self.state.copy_(self.model.initial_state(self.table.local_columns))

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on, global: tensors on the CPU by name, and plain values.

        Every rank calls it. Only the main rank, which writes, gets what all ranks have alike.
        """
        alike = self._trained() if self.accelerator.is_main_process else ()
        tensors = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in alike}
        for name, local in self.state.named():
            columns = local.new_zeros(self.table.columns, *local.shape[1:])
            columns[self._own_columns] = local
            tensors[name] = sum_over_ranks(self.accelerator, columns).cpu()
        scaler = self.accelerator.scaler
        return tensors, {"scaler": scaler.state_dict() if scaler is not None else None}

    def layout(self) -> dict[str, Tensor]:
        """The tensors of `state_dict` by name, with their shapes and types, but on the device `meta`: they hold nothing."""
        tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in self._trained()}
        for name, local in self.state.named():
            tensors[name] = local.new_empty(self.table.columns, *local.shape[1:], device="meta")
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state_dict` gave on any number of ranks."""
        for name, tensor in self._trained():
            tensor.copy_(tensors[name])
        for name, local in self.state.named():
            local.copy_(tensors[name][self._own_columns])
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])

    def close(self) -> None:
        """Let go of the DDP wrapper, which must not outlive the process group."""
        del self.wrapped_model

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, a tied one once, what the optimizer keeps of it, and the average, by their names in a checkpoint."""
        for name, parameter in self.model.named_parameters():
            yield f"model.{name}", parameter.detach()
            for key, value in self._optimizer.state[parameter].items():
                yield f"optimizer.{key}.{name}", value.detach()
        if self._average is not None:
            yield from self._average.named()

    def _train_segment(self, inputs: Tensor, targets: Tensor, num_targets: int, num_differences: int) -> Tensor:
        """Forward and backward of a segment (T, B_r): its gradient is added, and the state carried on. Returns this rank's nll.

        `num_targets` and `num_differences` are N_step and D_step, over all ranks.
        """
        masks = make_masks(self.config.model, self.config.train.seed, self._segment, inputs, self.table.first_column)
        nll, (activation, temporal), state = self.wrapped_model(inputs, self.state, targets, masks)
        # This segment's share of N_step times the step's loss. Its nll and AR are means over N_step targets, TAR over D_step differences.
        loss = nll + activation + temporal * (num_targets / max(1, num_differences))
        # DDP averages over ranks; times W / N_step this is the gradient of the global loss.
        self.accelerator.backward(loss * (self.accelerator.num_processes / num_targets))
        self.state.copy_(state)
        return nll.detach()

    def _clip(self) -> Tensor:
        """Clip the gradient, and return its norm before that."""
        self.accelerator.unscale_gradients(self._optimizer)
        norm = gradient_norm([parameter.grad for parameter in self.model.parameters() if parameter.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.optim.grad_clip, norm)
        return norm

    def _record(self) -> _Recording:
        """Record the gradient of a full segment; nothing that a run depends on is changed by it."""
        inputs, targets = self.table.segment(0, self.config.data.bptt)

        def gradient() -> Tensor:
            self._optimizer.zero_grad()  # a recorded backward writes its gradients where it first put them
            nll = self._train_segment(inputs, targets, self._full_targets, self._full_targets - self.table.columns)
            return torch.stack([nll, self._clip()])

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                gradient()
        torch.cuda.current_stream().wait_stream(stream)
        self.reset_state()
        self._optimizer.zero_grad()  # the graph makes gradients of its own
        gc.collect()  # a graph that the collector frees while another is captured would spoil that one
        graph = torch.cuda.CUDAGraph()
        # Not on the stream that all graphs share: when one of its graphs is destroyed, the others lose cuBLAS's memory (pytorch#193402).
        with torch.cuda.graph(graph, stream=stream):
            result = gradient()
        return _Recording(graph, [inputs, targets], result, [parameter.grad for parameter in self.model.parameters()])

    def _order_ddp_buckets(self) -> None:
        # DDP orders its buckets anew after its first backward, and the order of a sum decides its rounding. A
        # throw-away backward makes the first step of a start and of a resume the same as any other.
        if self.accelerator.num_processes > 1:
            inputs, targets = self.table.segment(0, 1)
            nll, _, _ = self.wrapped_model(inputs, self.state, targets)
            self.accelerator.backward(nll)
            self._optimizer.zero_grad()
            self.accelerator.wait_for_everyone()
