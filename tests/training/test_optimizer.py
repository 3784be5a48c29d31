"""Optimizers, schedules and averages against PyTorch's own; the gradient's norm."""

import copy
import itertools
import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lstmlm.config import OptimConfig
from lstmlm.training.optimizer import WeightAverage, gradient_norm, learning_rate
from tests.helpers import ADAMW, SmallConfig, build_step


@pytest.mark.parametrize("size", [100, 650])
def test_gradient_norm_is_right_to_a_millionth(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    # A few large rows and many tiny ones, as the tied weight's gradient has them.
    weight = torch.randn(33_278, size, generator=generator) * torch.rand(33_278, 1, generator=generator) ** 8
    gradients = [weight, 0.1 * torch.randn(4 * size, size, generator=generator), torch.randn(33_278, generator=generator)]
    exact = math.fsum(gradient.double().square().sum().item() for gradient in gradients) ** 0.5
    assert gradient_norm(gradients).item() == pytest.approx(exact, rel=1e-6)


def test_learning_rate_is_a_function_of_the_step() -> None:
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(constant, s, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    plateau = OptimConfig(lr=1.0, schedule="plateau", plateau_factor=0.5)
    assert [learning_rate(plateau, 50, 100, cuts) for cuts in (0, 1, 3)] == [1.0, 0.5, 0.125]
    cosine = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=10)
    expected = [2.0, 2 * (1 + math.cos(math.pi / 4)) / 2, 1.0, 0.0]
    assert [learning_rate(cosine, step, 110) for step in (10, 35, 60, 110)] == pytest.approx(expected)
    assert 0 < learning_rate(OptimConfig(lr=2.0, schedule="one_cycle"), 0, 1) <= 2.0, "a run of one step"
    flat = OptimConfig(lr=2.0, schedule="one_cycle", cycle_warmup=0.2, cycle_annealing=0.3, cycle_div=2, cycle_final_div=4)
    expected = [1.0, *[2.0] * 51, (2.0 + 0.5) / 2, 0.5]
    assert [learning_rate(flat, step, 100) for step in (0, *range(19, 70), 84, 99)] == pytest.approx(expected)


RECIPES: dict[str, list[str]] = {
    "adamw": ["--optim.name=adamw", "--optim.weight_decay=0.1", "--optim.betas=[0.8,0.99]", "--optim.eps=1e-7"],
    "one cycle": [*ADAMW, "--optim.betas=[0.8,0.99]", "--optim.cycle_warmup=0.3"],
    "ema": ["--optim.average=ema", "--optim.average_decay=0.9"],
    "sgd": ["--optim.name=sgd", "--optim.lr=5", "--optim.weight_decay=1e-3"],
    "asgd": ["--optim.name=sgd", "--optim.lr=5", "--optim.average=asgd", "--optim.average_interval=2"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_fifty_steps_are_those_of_pytorch(name: str, small_config: SmallConfig) -> None:
    """With a resume in the middle; the same gradients' arithmetic, but PyTorch's optimizer, its OneCycleLR, swa_utils and ASGD.

    The exponential average is PyTorch's from weights of zero, divided by what the true ones count in it, as Adam corrects its moments.
    """
    config = small_config(*RECIPES[name], "--model.dropout=0", "--train.log_every=100", "--optim.grad_clip=0.1")
    optim, losses = (config.optim, [3.0, 2.0, 2.5, 2.6, 2.7])  # asgd begins with the fifth: 2.7 > 2.0, two before the last two
    ours = build_step(config)
    ours.total_steps = 50
    plain = copy.deepcopy(ours.model)
    parameters = list(plain.parameters())
    averaged: AveragedModel | None = None
    if name == "ema":
        averaged = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        averaged.n_averaged += 1  # the first update is averaged too, and not copied
        for weight in averaged.module.parameters():
            weight.data.zero_()
    schedule: OneCycleLR | None = None
    theirs: torch.optim.Optimizer
    if optim.name == "sgd":
        theirs = torch.optim.SGD(parameters, optim.lr, weight_decay=optim.weight_decay)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
        theirs = kind(parameters, optim.lr, optim.betas, optim.eps, optim.weight_decay)
    if name == "one cycle":
        schedule = OneCycleLR(theirs, optim.lr, 50, pct_start=0.3, div_factor=10, final_div_factor=1e4, base_momentum=0.7, max_momentum=0.8)
    state = plain.initial_state(20)
    for step, window in zip(range(50), itertools.chain.from_iterable(ours.windows(i) for i in itertools.count()), strict=False):
        if step == 25:
            resumed = build_step(config)
            resumed.load_state_dict(*ours.state_dict())
            ours, resumed.total_steps = resumed, 50
        ours(window, step=step, segment=step)
        if schedule is not None:
            (own_group,), (other_group,) = ours._optimizer.param_groups, theirs.param_groups
            for key in ("lr", "betas"):
                assert own_group[key] == pytest.approx(other_group[key])
        inputs, targets = ours.table.segment(*window.segments[0])
        nll, _, state = plain(inputs, state.detach(), targets)
        theirs.zero_grad()
        (nll / window.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        theirs.step()
        if schedule is not None and step < 49:
            schedule.step()
        if averaged is not None:
            averaged.update_parameters(plain)
        if name == "asgd" and step == 23:  # PyTorch's average leaves its first step out
            theirs = torch.optim.ASGD(parameters, optim.lr, lambd=0, t0=0)
        if name == "asgd" and step % 5 == 4 and losses:
            assert ours.note_validation(losses.pop(0)) == (step == 24)
    for own, other in zip(ours.model.parameters(), parameters, strict=True):
        assert (own - other).norm() <= 1e-4 * other.norm()
    with ours.averaged():
        if averaged is not None:
            expected = [weight / (1 - 0.9**50) for weight in averaged.module.parameters()]
        else:
            expected = [theirs.state[p]["ax"] for p in parameters] if name == "asgd" else parameters
        for own, other in zip(ours.model.parameters(), expected, strict=True):
            assert (own - other).norm() <= 1e-4 * other.norm()


def test_the_average_begins_once_and_only_when_validation_is_worse() -> None:
    """Merity et al. (2017), algorithm 1: t > n and the loss above the least of all but the last n validations."""
    optim = OptimConfig(average="asgd", average_interval=3)
    average = WeightAverage(torch.nn.Linear(1, 1), optim)
    losses = [5.0, 4.0, 4.5, 4.6, 4.7, 3.0, 4.2, 2.9, 3.1]
    worse = [t > 3 and loss > min(losses[: t - 3]) for t, loss in enumerate(losses)]
    assert worse.index(True) == 6
    assert [average.note_validation(loss) for loss in losses] == [t == 6 for t in range(len(losses))]
