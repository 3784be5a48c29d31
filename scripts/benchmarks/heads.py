"""Head and loss alone, forward and backward: ours beside those of libraries, with their errors against float64."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.turns import MakeStep, Step, take_turns, workers
from torch import nn
from torch.nn import functional as F

from lstmlm import Config
from lstmlm.data.corpus import Corpus
from lstmlm.model.loss import linear_cross_entropy
from lstmlm.runtime import hardware

Head = Callable[..., torch.Tensor]  # of hidden, weight, bias, targets: the summed nll


def _torch_head(**chunks: Any) -> Head:
    return lambda hidden, weight, bias, targets: F.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", options=nn.LinearCrossEntropyOptions(**chunks)
    )


def plain_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The head everybody writes."""
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


HEADS: dict[str, Head] = {"plain": plain_head, "plain, kept": plain_head, "ours, kept": linear_cross_entropy}
if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
    HEADS["torch's, its own chunks, kept"] = _torch_head()
    HEADS["torch's, 300 rows, kept"] = _torch_head(chunking_method=None, batch_chunk_size=300)
    HEADS["torch's, 600 rows, kept"] = _torch_head(chunking_method=None, batch_chunk_size=600)


def _head_values(config: Config, corpus: Corpus, device: torch.device) -> list[torch.Tensor]:
    """Hidden states, weight and bias of about a trained model's size, and targets."""
    generator = torch.Generator(device).manual_seed(0)
    n, v, h = config.data.bptt * config.data.batch_size, len(corpus.vocabulary), config.model.layer_sizes[-1]
    hidden, weight, bias = (torch.randn(shape, generator=generator, device=device) for shape in ((n, h), (v, h), (v,)))
    return [0.3 * hidden, 0.1 * weight, 0.1 * bias, torch.randint(v, (n,), generator=generator, device=device)]


def _head_step(name: str, config: Config, corpus: Corpus, device: torch.device) -> Step:
    """A head and its loss alone, forward and backward; with memory kept where the name says so."""
    if name.endswith("kept"):
        hardware.keep_memory()
    *values, targets = _head_values(config, corpus, device)

    def step(i: int) -> None:
        _head_results(name, config, values, targets)

    return step


def _head_results(name: str, config: Config, values: list[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The nll and its gradients."""
    leaves = [value.detach().requires_grad_() for value in values]
    with torch.autocast(targets.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        nll = HEADS[name](*leaves, targets)
    return nll.detach(), *torch.autograd.grad(nll, leaves)


def measure_heads(config: Config, corpus: Corpus, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """For each head: ms, peak memory, and the relative error by norm of the nll and its gradients against float64."""
    makers: dict[str, MakeStep] = {name: functools.partial(_head_step, name) for name in HEADS}
    with workers(makers, config, device) as pipes:
        times, memory = take_turns(pipes, steps)
    *values, targets = _head_values(config, corpus, device)
    exact = _head_results("plain", config, [value.double() for value in values], targets)  # autocast leaves float64 alone
    rows = []
    for name in HEADS:
        results = _head_results(name, config, values, targets)
        errors = [float((a - e).norm() / e.norm()) for a, e in zip(results, exact, strict=True)]
        row = {"head": name, "ms": statistics.median(times[name]), "peak_memory_mb": memory[name]}
        rows.append(row | dict(zip(("nll", "hidden_grad", "weight_grad", "bias_grad"), errors, strict=True)))
    return rows
