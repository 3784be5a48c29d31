"""The optimizers and what they keep, averages of the weights, the learning rate, and the norm that clipping uses."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lstmlm.config import OptimConfig

# Of each parameter, in float32: what an optimizer keeps beside the step's number.
KEPT = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a model that is on its device already.

    AdamW decays every parameter, biases too (fastai, whose recipe the presets follow, leaves the decoder's out).
    """
    decay = optim.weight_decay
    if optim.name == "sgd":
        return torch.optim.SGD(model.parameters(), optim.lr, weight_decay=decay, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
    return kind(model.parameters(), optim.lr, optim.betas, optim.eps, decay, fused=True)


def set_up(optimizer: torch.optim.Optimizer, model: nn.Module, optim: OptimConfig) -> None:
    """Give an optimizer what it keeps before the first step: a checkpoint is loaded into these tensors."""
    for parameter in model.parameters() if KEPT[optim.name] else ():
        moments = {key: torch.zeros_like(parameter) for key in KEPT[optim.name]}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


def set_rates(optimizer: torch.optim.Optimizer, rate: float, beta: float) -> None:
    """Set the learning rate of the next update and, where the optimizer has moments, the first one's decay rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "betas" in group:
            group["betas"] = (beta, group["betas"][1])


class WeightAverage:
    """A running average of the weights, which is validated and exported in their place.

    `ema` is an exponential average from the first update on: after n updates the weights after update i count decay ** (n - i), over the
    sum of these. `asgd` is the plain mean of the weights after each update since its trigger (Merity et al., 2017, "Regularizing and
    optimizing LSTM language models", algorithm 1): a validation worse than the best of all but the `average_interval` before it.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        self._optim = optim
        self._own = {name: weight.detach() for name, weight in model.named_parameters()}
        self.weights = {name: torch.zeros_like(weight) for name, weight in self._own.items()}
        self._updates = torch.tensor(0 if optim.average == "ema" else -1)  # averaged; -1 before the trigger
        # Losses: the best of all but the last `average_interval`, then those.
        self._losses = torch.full((optim.average_interval + 1,), math.inf, dtype=torch.float64)

    @property
    def begun(self) -> bool:
        """Whether it holds an average yet."""
        return bool(self._updates > 0)

    def update(self) -> None:
        """Take in the weights after an update."""
        if self._updates < 0:
            return
        self._updates += 1
        n, decay = self._updates.item(), self._optim.average_decay
        # Of the newest weights; ema's is corrected as Adam's moments are: else the first weights would count decay ** (n - 1).
        share = (1 - decay) / (1 - decay**n) if self._optim.average == "ema" else 1 / n
        torch._foreach_lerp_(list(self.weights.values()), list(self._own.values()), share)

    def note_validation(self, loss: float) -> bool:
        """Take note of a validation, and tell whether averaging begins with it."""
        begins = bool(self._updates < 0 and loss > self._losses[0])
        if begins:
            self._updates.zero_()
        best = torch.minimum(self._losses[0], self._losses[1])
        self._losses = torch.cat([best[None], self._losses[2:], self._losses.new_tensor([loss])])
        return begins

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its name in a checkpoint."""
        yield from ((f"average.{name}", weight) for name, weight in self.weights.items())
        yield from (("average.updates", self._updates), ("average.losses", self._losses))


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients of any shapes on one device, all together: a float32 scalar that is right to 1e-6.

    (`torch.nn.utils.get_total_norm` adds millions of squares in float32: 1e-4 to 1e-3 off, and not faster.)
    """
    rows = torch.cat([(torch.linalg.vector_norm(g, dim=-1) if g.dim() > 1 else g).flatten() for g in gradients])
    return torch.linalg.vector_norm(rows, dtype=torch.float64).float()


def learning_rate(optim: OptimConfig, step: int, total_steps: int, cuts: int = 0) -> float:
    """Learning rate of a step, a function of its number and the cuts before it: linear warm-up, then `schedule`; or one cycle.

    Args:
        step: From 0.
        total_steps: Steps of the whole run.
        cuts: How often the schedule `plateau` has cut the rate; 0 under the others.
    """
    if optim.schedule == "one_cycle":
        first, last = optim.lr / optim.cycle_div, optim.lr / optim.cycle_final_div
        return _one_cycle(optim, step, total_steps, first, optim.lr, last)
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule != "cosine":
        return optim.lr * optim.plateau_factor**cuts
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    return _cosine(optim.lr, 0, progress)


def first_beta(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Decay rate of the first moment at a step; one cycle may move it against the learning rate."""
    beta = optim.betas[0]
    if optim.schedule != "one_cycle" or optim.cycle_beta is None:
        return beta
    return _one_cycle(optim, step, total_steps, beta, optim.cycle_beta, beta)


def _one_cycle(optim: OptimConfig, step: int, total_steps: int, first: float, peak: float, last: float) -> float:
    """Half a cosine from `first` to `peak`, then one to `last` at the last step (Smith, 2018, "A disciplined approach to neural network
    hyper-parameters: part 1"; steps as in PyTorch's OneCycleLR). In between it may stay at `peak`."""
    top, end = optim.cycle_warmup * total_steps - 1, total_steps - 1
    if step < top:
        return _cosine(first, peak, step / top)
    down = top if optim.cycle_annealing is None else end - optim.cycle_annealing * total_steps
    return _cosine(peak, last, max(0, step - down) / (end - down))


def _cosine(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` to `last`, at `progress` in [0, 1]."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
