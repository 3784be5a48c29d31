"""Adam, its learning rate, and the norm that clipping uses."""

import math

import torch
from torch import Tensor, nn

from lstmlm.config import OptimConfig


def make_optimizer(model: nn.Module, optim: OptimConfig, recorded: bool) -> torch.optim.Optimizer:
    """The optimizer of a model that is on its device already.

    Args:
        model: Whose parameters it updates.
        optim: `lr`, `betas`, `eps`, `weight_decay`.
        recorded: Whether a CUDA graph will record its update; the learning rate is a tensor then.
    """
    device = next(model.parameters()).device
    rate = torch.tensor(optim.lr, device=device) if recorded else optim.lr
    return torch.optim.Adam(
        model.parameters(), rate, optim.betas, optim.eps, optim.weight_decay, capturable=recorded, fused=True
    )


def fill_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give Adam its state before the first step: a checkpoint is loaded into these tensors, and a CUDA graph relies on their addresses."""
    for parameter in model.parameters():
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, a float32 scalar that is right to 1e-6.

    (`torch.nn.utils.get_total_norm` adds millions of squares in float32: 1e-4 to 1e-3 off, and not faster.)

    Args:
        gradients: Of any shapes, on one device.
    """
    rows = torch.cat([torch.linalg.vector_norm(g, dim=-1) if g.dim() > 1 else g for g in gradients])
    wide = torch.float32 if rows.device.type == "mps" else torch.float64  # MPS has no float64
    return torch.linalg.vector_norm(rows, dtype=wide).float()


def learning_rate(optim: OptimConfig, step: int, total_steps: int, cuts: int = 0) -> float:
    """Learning rate of a step, a function of its number and the cuts before it: linear warm-up, then `schedule`.

    Args:
        optim: `lr`, `schedule`, `plateau_factor`, `warmup_steps`.
        step: From 0.
        total_steps: Steps of the whole run.
        cuts: How often the schedule `plateau` has cut the rate; 0 under the others.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule != "cosine":
        return optim.lr * optim.plateau_factor**cuts
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    return optim.lr * (1 + math.cos(math.pi * progress)) / 2
