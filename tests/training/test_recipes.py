"""The pieces of a recipe together: exact on resume in the middle, and the losses that they and the seed's settings gave once."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from lstmlm import evaluate, load_config
from lstmlm.config import DataConfig
from lstmlm.model.pretrained import load
from lstmlm.training.segments import segment_ends
from tests.helpers import (
    ADAMW,
    ASGD,
    EVERYTHING,
    Small,
    SmallConfig,
    assert_same_run,
    build_step,
    final_state,
    fresh_train,
    interrupted,
    run_steps,
    skip_without_bf16,
)


@pytest.mark.parametrize("optim", [[*ADAMW, "--optim.average=ema"], ASGD], ids=["adamw", "asgd"])
def test_resume_in_the_middle_is_exact(optim: list[str], small: Small, tmp_path: Path) -> None:
    """Before and after the trigger, within a window, and within an epoch of drawn segments; what is exported is the average."""
    summary = fresh_train(load_config(small(*EVERYTHING, *optim, run="whole")))
    interrupted(small, "cut", [*EVERYTHING, *optim], cuts=[(5, None), (16, 1), (26, None)])
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    tensors = final_state(tmp_path / "whole")
    assert 1 < tensors["average.updates"].item() <= summary["step"], "the trigger came within the run"
    validation = evaluate(tmp_path / "whole", "validation", columns=10, cache_dir=str(tmp_path / "cache"))
    assert validation.ppl == pytest.approx(summary["best"], rel=1e-6), "the average is what was validated"
    exported = load(tmp_path / "whole/model").model.weights()
    if summary["best_step"] == summary["step"]:
        for name, weight in exported.items():
            assert torch.equal(weight, tensors[f"average.{name}"])
    else:
        assert not torch.equal(exported["decoder.bias"], tensors["model.decoder.bias"])


def test_a_validation_leaves_training_as_it_was(small_config: SmallConfig) -> None:
    train_step = build_step(small_config("--optim.average=ema", "--train.log_every=100"))
    run_steps(train_step, 3)
    before = train_step.state_dict()[0]
    with train_step.averaged():
        for name, weight in train_step.model.weights().items():
            assert torch.equal(weight, before[f"average.{name}"])
            assert not torch.equal(weight, before[f"model.{name}"])
    for name, tensor in train_step.state_dict()[0].items():
        assert torch.equal(tensor, before[name])


def test_an_update_that_fp16_skips_is_not_averaged(small_config: SmallConfig) -> None:
    train_step = build_step(small_config("--optim.average=ema", "--train.log_every=100"))
    run_steps(train_step, 3)
    before = train_step.state_dict()[0]
    scaler = train_step.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=torch.inf)  # fp16 itself needs a GPU
    train_step._optimizer = AcceleratedOptimizer(train_step._optimizer.optimizer, scaler=scaler)
    train_step(next(train_step.windows(epoch=1)), step=3, segment=3)
    after = train_step.state_dict()[0]
    assert torch.equal(before["average.updates"], after["average.updates"])
    assert torch.equal(before["average.embedding.weight"], after["average.embedding.weight"])
    assert train_step.read()[0].grad_norm is None, "and it ends no run"


@pytest.mark.parametrize("rows", [1, 7, 9, 20, 333, 26_107])
@pytest.mark.parametrize(("bptt", "jitter"), [(10, 2.5), (70, 5.0)])
def test_drawn_segments_cover_every_row_once(rows: int, bptt: int, jitter: float) -> None:
    data = DataConfig(bptt=bptt, bptt_jitter=jitter)
    ends = [segment_ends(data, 1, rows, epoch) for epoch in range(30)]
    for own in ends:
        assert own[-1] == rows
        assert all(before < after for before, after in zip([0, *own], own, strict=False))
        assert len(own) == len(ends[0]), "the number of steps is known beforehand"
    if rows > 10_000:
        assert ends[0] != ends[1] != segment_ends(data, 2, rows, 1)
        lengths = torch.tensor([[0, *own] for own in ends]).diff(dim=1).double()
        half = lengths < 0.75 * bptt if jitter == 5.0 else torch.zeros_like(lengths).bool()
        if jitter == 5.0:  # Merity et al. (2017): normal around 70 with deviation 5, around 35 in one case of twenty
            assert half.double().mean() == pytest.approx(0.05, abs=0.01)
            assert lengths[~half].mean() == pytest.approx(70, abs=0.7)
            assert lengths[~half].std() == pytest.approx(5, abs=0.3)
            assert lengths[half].mean() == pytest.approx(35, abs=1)


def test_the_rate_goes_with_the_rows(small_config: SmallConfig) -> None:
    overrides = ["--data.bptt_jitter=2.5", "--train.log_every=100", "--train.accumulate=2"]
    train_step = build_step(small_config(*overrides))
    windows = list(train_step.windows(epoch=3))
    assert len({window.end - window.first for window in windows}) > 1
    for number, window in enumerate(windows):
        train_step(window, step=number, segment=number)
        (group,) = train_step._optimizer.param_groups
        rows = sum(end - first for first, end in window.segments) / len(window.segments)
        assert group["lr"] == pytest.approx(0.005 * rows / 10)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["seed", "everything"])
def test_the_losses_are_those_of_the_record(recipe: str, precision: str, tmp_path: Path) -> None:
    """Of the toy language, step by step. `seed` is what the first release computed; a change of the record is a change of every run."""
    if precision == "bf16":
        skip_without_bf16()
    overrides = [] if recipe == "seed" else [*EVERYTHING[:10], *ADAMW, "--optim.lr=5e-3", "--data.bptt_jitter=5"]
    arguments = ["--data.dataset=toy", f"--data.cache_dir={tmp_path}", "--train.threads=1", f"--train.precision={precision}"]
    losses = run_steps(build_step(load_config([*arguments, "--train.log_every=100", *overrides])), 20)
    recorded = json.loads(Path(__file__).with_name("losses.json").read_text())[f"{recipe} {precision}"]
    # Another processor sums in another order, and bf16 rounds to 8 bits. (Here they are the record's to the last digit.)
    assert losses == pytest.approx(recorded, rel=1e-5 if precision == "fp32" else 2e-3)
