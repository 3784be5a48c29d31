"""The gradient's norm and the learning rate."""

import math

import pytest
import torch

from lstmlm.config import OptimConfig
from lstmlm.training.optimizer import gradient_norm, learning_rate


@pytest.mark.parametrize("size", [100, 650, 1500])
def test_gradient_norm_is_right_to_a_millionth(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    # A few large rows and many tiny ones, as the tied weight's gradient has them.
    weight = torch.randn(33_278, size, generator=generator) * torch.rand(33_278, 1, generator=generator) ** 8
    gradients = [
        weight,
        0.1 * torch.randn(4 * size, size, generator=generator),
        torch.randn(33_278, generator=generator),
    ]
    exact = math.fsum(gradient.double().square().sum().item() for gradient in gradients) ** 0.5
    assert gradient_norm(gradients).item() == pytest.approx(exact, rel=1e-6)


def test_learning_rate_is_a_function_of_the_step() -> None:
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(constant, s, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    plateau = OptimConfig(lr=1.0, schedule="plateau", plateau_factor=0.5)
    assert [learning_rate(plateau, 50, 100, cuts) for cuts in (0, 1, 3)] == [1.0, 0.5, 0.125]
    cosine = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(cosine, 10, 110) == 2.0
    assert learning_rate(cosine, 60, 110) == pytest.approx(1.0)
    assert learning_rate(cosine, 110, 110) == pytest.approx(0.0)
    assert learning_rate(cosine, 35, 110) == pytest.approx(2 * (1 + math.cos(math.pi / 4)) / 2)
