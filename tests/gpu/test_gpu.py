"""What only a GPU can show: `pytest -m gpu`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from lstmlm import LSTMLanguageModel, Vocabulary, generate_text, load, load_config, score_text
from lstmlm.config import ModelConfig
from lstmlm.evaluation.adaptation import Cache, CacheScorer, Dynamic, DynamicScorer, gradient_rms
from lstmlm.evaluation.perplexity import StaticScorer, evaluate_stream, score_stream
from lstmlm.model.dropout import make_masks
from lstmlm.model.loss import linear_cross_entropy
from lstmlm.model.pretrained import save_pretrained
from lstmlm.runtime.hardware import ieee_products, set_float32_products
from tests.helpers import (
    RECIPES,
    WORDS,
    Small,
    SmallConfig,
    assert_same_run,
    build_step,
    forget_accelerate,
    fresh_train,
    interrupted,
    metrics,
    run_steps,
    sharp_model,
)
from tests.system.launcher import TRAIN, free_port

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and -m gpu")]


@pytest.fixture(autouse=True)
def enough_of_a_gpu(request: pytest.FixtureRequest) -> None:
    precision = getattr(request.node, "callspec", None) and request.node.callspec.params.get("precision")
    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{precision} needs a GPU of the Ampere generation or later")


# What `train.deterministic` sets too, but cuBLAS reads it once, at the first product of the process.
if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@ieee_products()
def test_flat_cudnn_weights_are_exported_whole(tmp_path: Path) -> None:
    model = LSTMLanguageModel(ModelConfig(embedding_size=16, hidden_size=16), 31).cuda()
    tokens = torch.randint(31, (7, 3), device="cuda")
    expected, _ = model.logits(tokens, model.initial_state(3))
    storages = {p.untyped_storage().data_ptr() for p in model.layers[0].parameters()}
    assert len(storages) == 1, "cuDNN keeps a layer's weights in one buffer"
    save_pretrained(tmp_path, model, Vocabulary(WORDS), {"dataset": "toy"})
    for device in ("cuda", "cpu"):
        loaded = load(tmp_path, device=device).model
        logits, _ = loaded.logits(tokens.to(device), loaded.initial_state(3))
        torch.testing.assert_close(logits.cpu(), expected.cpu(), rtol=1e-4, atol=1e-5)


# Emulated on a CPU, the rounding of bf16 moves these losses by 3e-4 in 100 steps, that of the others by less.
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_low_precision_follows_float32(precision: str, small_config: SmallConfig) -> None:
    overrides = ("--data.bptt=2", "--data.batch_size=10", "--train.log_every=1000")
    losses = {}
    for name in ("fp32", precision):
        forget_accelerate()
        losses[name] = run_steps(build_step(small_config(*overrides, f"--train.precision={name}")), 100)
    assert len(losses["fp32"]) == 100
    assert losses[precision] == pytest.approx(losses["fp32"], rel=1.5e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_only_fp16_has_an_lstm_in_float16(precision: str, small_config: SmallConfig) -> None:
    """Autocast would give bf16 the same, without the scaling that float16's gradients need."""
    train_step = build_step(small_config(f"--train.precision={precision}"))
    seen = []
    train_step.model.layers[0].register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0].dtype))
    run_steps(train_step, 1)
    assert seen == [torch.float16 if precision == "fp16" else torch.float32]


def test_fp16_skips_a_step_that_overflows(small_config: SmallConfig) -> None:
    train_step = build_step(small_config("--train.precision=fp16"))
    scaler = train_step.accelerator.scaler
    assert scaler is not None
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**30})
    before = train_step.model.weights()
    window = next(iter(train_step.table.windows(10)))
    train_step(window, step=0, segment=0)
    (result,) = train_step.read()
    assert result.grad_norm is None
    torch.testing.assert_close(train_step.model.weights(), before, rtol=0, atol=0)


GRAPH_RECIPE = (
    "--optim.name=adamw --optim.schedule=one_cycle --optim.cycle_beta=0.7 --optim.average=ema --model.dropout_types=0.1 "
    "--model.dropout_weights=0.3 --model.dropout_locked=true"
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["--optim.schedule=cosine --model.tie_weights=false", GRAPH_RECIPE], ids=["cosine", "recipe"])
def test_a_cuda_graph_is_the_eager_step(recipe: str, precision: str, small_config: SmallConfig) -> None:
    """Two epochs, each with a short last segment, and a validation between them; the rate changes with every step."""
    overrides = ("--train.deterministic=true", "--train.log_every=100", *recipe.split())
    losses, ends = [], []
    for graph in ("true", "false"):
        train_step = build_step(small_config(*overrides, f"--train.precision={precision}", f"--train.cuda_graph={graph}"))
        assert (train_step._recording is not None) == (graph == "true")
        losses.append([])
        for epoch in range(2):
            windows = list(train_step.windows(epoch))
            for number, window in enumerate(windows, start=epoch * len(windows)):
                train_step(window, step=number, segment=number)
            losses[-1] += [result.nll for result in train_step.read()]
            train_step.reset_state()
            with train_step.averaged():
                evaluate_stream(train_step.model, torch.arange(31, dtype=torch.int32) % 7, 2, train_step.accelerator)
        ends.append(train_step.state_dict()[0])
    # While a graph is recorded, cuBLAS may choose another kernel.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if precision == "fp32" else 1e-3)
    bound = 1e-4 if precision == "fp32" else 1e-2
    for name in ends[0]:
        ours, eager = (tensors[name].double() for tensors in ends)
        assert torch.equal(ours, eager) or (ours - eager).norm() <= bound * eager.norm(), name


@pytest.mark.parametrize("graph", ["true", "false"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_and_resumed_is_uninterrupted(precision: str, graph: str, small: Small, tmp_path: Path) -> None:
    overrides = ["--train.deterministic=true", "--optim.average=ema", f"--train.precision={precision}", f"--train.cuda_graph={graph}"]
    fresh_train(load_config(small(*overrides, run="whole")))
    interrupted(small, "cut", overrides, [(10, None)])
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("graph", ["true", "false"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision: str, graph: str, small_config: SmallConfig) -> None:
    overrides = (f"--train.precision={precision}", f"--train.cuda_graph={graph}", "--train.log_every=100")
    train_step = build_step(small_config(*overrides))
    windows = list(train_step.table.windows(10))
    train_step(windows[0], step=0, segment=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, window in enumerate([*windows[1:], windows[0]], start=1):  # the short last one, and one after it
            train_step(window, step=number, segment=number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(train_step.read()) == len(windows) + 1


def test_the_head_keeps_no_logits() -> None:
    n, v, h = 2000, 33_278, 100
    hidden = torch.randn(n, h, device="cuda", requires_grad=True)
    weight = (0.1 * torch.randn(v, h, device="cuda")).requires_grad_()
    targets = torch.randint(v, (n,), device="cuda")
    peaks = {}
    for name in ("ours", "plain"):
        hidden.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if name == "ours":
            linear_cross_entropy(hidden, weight, None, targets).backward()
        else:
            F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    assert peaks["ours"] < peaks["plain"] / 2


def test_masks_have_the_same_bits_as_on_a_cpu() -> None:
    config = ModelConfig(dropout_types=0.1, dropout_weights=0.5)
    tokens = torch.randint(33_278, (30, 17))
    for segment in (0, 139_279, 2**31 - 1):
        number = torch.tensor(segment, dtype=torch.int32)
        on_cpu, on_gpu = (make_masks(config, 2**32 - 1, n, tokens.to(n.device), 3) for n in (number, number.cuda()))
        assert on_cpu is not None
        assert on_gpu is not None
        for ours, theirs in zip(tree_leaves(on_cpu), tree_leaves(on_gpu), strict=True):
            assert ours is theirs is None or torch.equal(ours, theirs.cpu())


@pytest.mark.filterwarnings("error:RNN module weights")  # of cuDNN, which compacts DropConnect's
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_cpu_and_a_gpu_agree_with_dropout_on(recipe: list[str], small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(*recipe, "--train.log_every=100", "--train.precision=fp32")
    on_gpu = run_steps(build_step(config), 10)
    forget_accelerate()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert on_gpu == pytest.approx(run_steps(build_step(config), 10), rel=1e-5)


def test_one_rank_of_nccl_trains_as_without_it(small: Small, tmp_path: Path) -> None:
    overrides = ("--train.deterministic=true", "--train.precision=fp32", "--train.log_every=1")
    fresh_train(load_config(small(*overrides, run="alone")))
    group = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **group, "MASTER_PORT": str(free_port())}
    words = [sys.executable, TRAIN, *small(*overrides, run="group")]
    process = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    assert [line["train/loss"] for line in metrics(tmp_path / "group") if "train/loss" in line] == pytest.approx(
        [line["train/loss"] for line in metrics(tmp_path / "alone") if "train/loss" in line], rel=1e-5
    )


@pytest.mark.parametrize("columns", [1, 7, 4096])
def test_static_scores_are_those_of_a_cpu(columns: int) -> None:
    """In one long column and in many of few rows, also where training has set TF32."""
    model = sharp_model(31, 16)
    stream, scores = torch.randint(31, (9000,), dtype=torch.int32), {}
    for device in ("cpu", "cuda"):
        set_float32_products("tf32" if device == "cuda" else "fp32")
        scores[device] = score_stream(StaticScorer(model.to(device), columns), stream, columns, torch.device(device))
    torch.testing.assert_close(scores["cuda"], scores["cpu"], rtol=1e-4, atol=1e-4)


def test_texts_and_surprisals_are_those_of_a_cpu() -> None:
    """Of the model that comes with the package."""
    texts, rows = [], []
    for device in ("cpu", "cuda"):
        model = load(device=device)
        texts.append(generate_text("The city of", max_len=20, temperature=0, model=model))
        rows.append([value for row in score_text("The city of London is old .", model=model) for value in (row.surprisal, row.entropy)])
    assert texts[0] == texts[1]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_adapting_scores_are_those_of_a_cpu(rule: str) -> None:
    """cuDNN goes an LSTM backward only where the forward was told of it."""
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(embedding_size=16, hidden_size=16), 31).eval()
    stream, scores = torch.randint(31, (200,), dtype=torch.int32), {}
    for device in ("cpu", "cuda"):
        model.to(device)
        settings = Dynamic(rule=rule, lr=0.5 if rule == "sgd" else 0.005, epsilon=0.01, bptt=5)
        scorer = CacheScorer(DynamicScorer(model, 3, settings, gradient_rms(model, stream)), Cache(window=20))
        scores[device] = score_stream(scorer, stream, 3, device, 5)
    torch.testing.assert_close(scores["cuda"], scores["cpu"], rtol=1e-3, atol=1e-4)
