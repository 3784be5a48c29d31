"""What many test files do: train a whole run, interrupt it, and compare two of them."""

import gzip
import itertools
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstmlm import Config, LSTMLanguageModel, load_config, train
from lstmlm.config import ModelConfig
from lstmlm.console import UsageError
from lstmlm.data.corpus import load_corpus
from lstmlm.data.table import Table
from lstmlm.runtime import launch
from lstmlm.training import checkpoint
from lstmlm.training.step import TrainStep

ROOT = Path(__file__).parent.parent
Small = Callable[..., list[str]]  # the fixture `small`
SmallConfig = Callable[..., Config]  # the fixture `small_config`

WORDS = ["<unk>", "<eos>", *(f"w{i}" for i in range(29))]

# What depends on the machine and its load, not on the configuration.
TIMINGS = ("train/tokens_per_second", "seconds", "time/", "memory/")

SMALL = """
    --data.bptt=10 --model.embedding_size=12 --model.hidden_size=12 --optim.lr=0.005 --optim.grad_clip=0.05 --train.epochs=2
    --train.log_every=1 --train.save_every=7 --train.threads=1 --tracking.trackers=[]
""".split()

# Every piece of a recipe at once, for the small text, and the optimizers to go with it
EVERYTHING = """
    --data.bptt_jitter=2.5 --model.hidden_size=20 --model.num_layers=3 --model.dropout=0.3 --model.dropout_input=0.2
    --model.dropout_types=0.1 --model.dropout_weights=0.3 --model.dropout_locked=true --model.activation_penalty=2
    --model.temporal_penalty=1 --train.accumulate=2 --train.epochs=4 --train.eval_every=2
""".split()
ADAMW = ["--optim.name=adamw", "--optim.weight_decay=0.1", "--optim.schedule=one_cycle", "--optim.cycle_beta=0.7"]
ASGD = ["--optim.name=sgd", "--optim.lr=20", "--optim.average=asgd", "--optim.average_interval=1"]
RECIPES = {"seed": [], "adamw": [*EVERYTHING, *ADAMW, "--optim.average=ema"], "sgd": [*EVERYTHING, *ASGD]}


class Watch(TorchDispatchMode):
    """Calls `see` with each operation, its arguments and the tensors of its result."""

    def __init__(self, see: Callable[[Any, Any, list[torch.Tensor]], object]) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._see(func, args, [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)])
        return result


def small_arguments(text: Path, folder: Path, *overrides: str, run: str = "run") -> list[str]:
    places = [f"--data.dataset={text}", f"--data.cache_dir={folder / 'cache'}", f"--train.run_dir={folder / run}"]
    return [*places, *SMALL, *overrides]


def sharp_model(vocab_size: int, size: int = 12, **config: Any) -> LSTMLanguageModel:
    """An untrained model whose probabilities differ all the same."""
    torch.manual_seed(0)
    model = LSTMLanguageModel(ModelConfig(**{"embedding_size": size, "hidden_size": size, **config}), vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@torch.no_grad()
def token_by_token(model: LSTMLanguageModel, before: int, ids: list[int]) -> tuple[torch.Tensor, list[float]]:
    """ln p of the whole vocabulary at each token of a text that is read alone, after `before`, float64 (n, V); and each token's nll."""
    state, rows = model.initial_state(1), []
    for token in [before, *ids[:-1]]:
        logits, state = model.logits(torch.tensor([[token]]), state)
        rows.append(logits[0, 0].double().log_softmax(-1))
    return torch.stack(rows), [-row[token].item() for row, token in zip(rows, ids, strict=True)]


def forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


class PowerCutError(Exception):
    """Nothing in the program catches it, and nothing is written after it."""


def fresh_train(config: Config) -> dict[str, Any]:
    forget_accelerate()
    summary = train(config).summary
    assert summary is not None
    return summary


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMINGS)} for line in lines]


def figures(run: Path) -> dict[str, Any]:
    """`summary.json` without timings."""
    summary = json.loads((run / "summary.json").read_bytes())
    del summary["seconds"]
    return summary


def final_state(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.checkpoints(run / "checkpoints")[0]
    checkpoint.verify(newest)
    return checkpoint.load_tensors(newest)


def assert_same_run(actual: Path, expected: Path) -> None:
    """Every line of metrics, every final tensor, the exported model: bit for bit."""
    assert metrics(actual) == metrics(expected)
    a, e = final_state(actual), final_state(expected)
    assert a.keys() == e.keys()
    assert [k for k in e if a[k].numpy().tobytes() != e[k].numpy().tobytes()] == []
    names = ("model.safetensors", "config.json", "vocab.json")
    assert [n for n in names if (actual / "model" / n).read_bytes() != (expected / "model" / n).read_bytes()] == []
    assert figures(actual) == figures(expected)
    assert (actual / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, event: Callable[[TrainStep], object]) -> None:
    """Let something happen before step `number`."""
    call = TrainStep.__call__

    def eventful(self: TrainStep, window: Any, *, step: int, **numbers: int) -> None:
        if step == number:
            event(self)
        call(self, window, step=step, **numbers)

    monkeypatch.setattr(TrainStep, "__call__", eventful)


def lose_power(arguments: list[str], step: int, segment: int | None = None) -> list[str]:
    """Train until the power is lost, before a step or in it once `segment` segments of its window are done; the arguments again."""
    forward, segments = LSTMLanguageModel.forward, itertools.count()

    def dying_forward(self: LSTMLanguageModel, *args: Any, **kwargs: Any) -> Any:
        if next(segments) == segment:
            raise PowerCutError
        return forward(self, *args, **kwargs)

    def die(_: TrainStep) -> None:
        if segment is None:
            raise PowerCutError
        monkeypatch.setattr(LSTMLanguageModel, "forward", dying_forward)

    with pytest.MonkeyPatch.context() as monkeypatch:
        at_step(monkeypatch, step, die)
        with pytest.raises(PowerCutError):
            fresh_train(load_config(arguments))
    return arguments


def interrupted(small: Small, run: str, overrides: list[str], cuts: list[tuple[int, int | None]]) -> None:
    """Run to the first cut, resume to the second, ..., resume to the end; the same command every time."""
    arguments = small(*overrides, "--train.resume=true", run=run)
    for step, segment in cuts:
        lose_power(arguments, step, segment)
    fresh_train(load_config(arguments))


def read_terminal(terminal: int) -> bytes:
    """What is written to a terminal until its other end is closed."""
    shown = b""
    with suppress(OSError):  # how Linux tells the end
        while part := os.read(terminal, 65_536):
            shown += part
    os.close(terminal)
    return shown


def make_file(path: Path, content: bytes) -> Path:
    """Into a folder that is made where it is missing, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


def data_card(subset: str, paths: dict[str, str]) -> str:
    """README.md of a data set in the Hub's layout, which says where the files of each split are."""
    files = [{"split": split, "path": path} for split, path in paths.items()]
    return f"---\n{yaml.safe_dump({'configs': [{'config_name': subset, 'data_files': files}]})}---\n"


@contextmanager
def little_memory(most: float) -> Iterator[None]:
    """A block in which what Python allocates stays below `most` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def skip_without_bf16() -> None:
    try:
        launch._check_device("bf16", torch.device("cpu"))
    except UsageError as error:
        pytest.skip(str(error))


def build_step(config: Config, stream: torch.Tensor | None = None) -> TrainStep:
    """The step of a run of one rank, on a stream of token ids or else the training split."""
    config = launch.resolve_precision(config)
    accelerator = launch.start(config)
    corpus = load_corpus(config.data)
    table = Table(corpus.splits["train"] if stream is None else stream, config.data.batch_size, device=accelerator.device)
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(config.model, len(corpus.vocabulary))
    return TrainStep(config, accelerator, model, table, total_steps=1000)


def run_steps(train_step: TrainStep, count: int) -> list[float]:
    """Loss per target of the first `count` windows of an epoch."""
    segment = 0
    for number, window in enumerate(itertools.islice(train_step.windows(epoch=0), count)):
        train_step(window, step=number, segment=segment)
        segment += len(window.segments)
    return [result.nll / result.num_targets for result in train_step.read()]
