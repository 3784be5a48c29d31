"""How fast is a training step? The plain loop, ours, and the hardware's floor, interleaved in one run.

    python scripts/benchmark.py --data.dataset FOLDER --precision bf16 [--threads 2] [--steps 20] [--full | --heads | --ranks N ...]
        [--device cpu|cuda] [--json]

Takes the training configuration's arguments too (`--config FILE` first, `--data.*`, `--model.*`). Three processes take turns, repeat by
repeat, so that each keeps its own memory and a change in the machine's speed meets all of them:

  plain   what everybody writes: nn.LSTM, all logits, log_softmax and nll, unfused Adam, .item() each step, float32 (an NVIDIA
          GPU's LSTM may use TF32 there, which is torch's default)
  ours    the `TrainStep` of scripts/train.py
  floor   the matrix products and LSTM layers of a step alone, on warm buffers, in the precision of `ours`, each in the layout and in
          the pieces that are fastest on this machine; it says which
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.floor import floor_step, ways_of
from benchmarks.heads import measure_heads
from benchmarks.ranks import measure_ranks
from benchmarks.turns import REPEATS, Step, receive, take_turns, training, workers
from publish_results import processor
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lstmlm import Config, LSTMLanguageModel, load_config
from lstmlm.config import OptimConfig
from lstmlm.console import UsageError, check, run_script
from lstmlm.data.corpus import Corpus, load_corpus
from lstmlm.data.table import Table
from lstmlm.evaluation.perplexity import evaluate_stream
from lstmlm.generation import Sampling, sample
from lstmlm.runtime import hardware, launch


class PlainModel(nn.Module):
    """The model as everybody writes it."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        m = config.model
        sizes = [m.embedding_size, *m.layer_sizes]
        self.embedding = nn.Embedding(vocab_size, m.embedding_size)
        self.dropout = nn.Dropout(m.dropout)
        self.layers = nn.ModuleList(nn.LSTM(*pair) for pair in pairwise(sizes))
        self.decoder = nn.Linear(sizes[-1], vocab_size)
        if m.tie_weights:
            self.decoder.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -m.init_range, m.init_range)

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        y, new_state = self.dropout(self.embedding(x)), []
        for layer, layer_state in zip(self.layers, state or [None] * len(self.layers), strict=True):
            y, layer_state = layer(y, layer_state)
            y = self.dropout(y)
            new_state.append(layer_state)
        return F.log_softmax(self.decoder(y).flatten(0, 1), -1), new_state


def plain_step(config: Config, corpus: Corpus, device: torch.device) -> Step:
    """The loop everybody writes."""
    model = PlainModel(config, len(corpus.vocabulary)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), config.optim.lr)
    table = Table(corpus.splits["train"], config.data.batch_size, device=device)
    windows = list(table.windows(config.data.bptt))
    state: Any = None

    def step(i: int) -> None:
        nonlocal state
        inputs, targets = table.segment(*windows[i].segments[0])
        log_probs, state = model(inputs, state)
        state = [(h.detach(), c.detach()) for h, c in state]
        loss = F.nll_loss(log_probs, targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.step()
        loss.item()

    return step


def our_step(config: Config, corpus: Corpus, device: torch.device) -> Step:
    """The step of scripts/train.py."""
    return training(config, corpus.splits["train"], LSTMLanguageModel(config.model, len(corpus.vocabulary)))[1]


STEPS = {"plain": plain_step, "ours": our_step, "floor": floor_step}


PARTS = {
    "head": ("_LinearCrossEntropy", "_LinearCrossEntropyBackward"),
    "lstm": (
        "LSTMFunction",
        "LSTMFunctionBackward",
        "aten::lstm",
        "aten::mkldnn_rnn_layer_backward",
        "aten::_thnn_fused_lstm_cell",
        "aten::_cudnn_rnn_backward",
    ),
    "optimizer": ("Optimizer.step#Adam.step",),
    "clip": ("aten::_foreach_norm", "aten::linalg_vector_norm", "aten::_foreach_mul_", "aten::stack"),
    "masks": ("aten::bitwise_and", "aten::__rshift__", "aten::bitwise_xor", "aten::bitwise_xor_", "aten::lt", "aten::div_"),
}


def shares_of_parts(step: Step, first: int, count: int) -> dict[str, float]:
    """Share of each part in the time of some steps, as the host sees it; `host` is the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for i in range(first, first + count):
            step(i)
        total = 1e6 * (time.perf_counter() - start)
    spent = {average.key: average.cpu_time_total for average in profiler.key_averages()}
    shares = {part: sum(spent.get(name, 0.0) for name in names) / total for part, names in PARTS.items()}
    return shares | {"host": 1 - sum(shares.values())}


def measure(config: Config, device: torch.device, steps: int) -> dict[str, Any]:
    """Times of the three, interleaved."""
    with workers(STEPS, config, device) as pipes:
        times, memory = take_turns(pipes, steps)
        pipes["ours"].send((REPEATS * steps, steps, shares_of_parts))
        shares = receive(pipes["ours"])
        pipes["floor"].send((0, 0, ways_of))
        ways = receive(pipes["floor"])
    tokens = config.data.batch_size * config.data.bptt
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name}_ms": medians[name] for name in STEPS},
        **{f"{name}_ms_min_max": [min(times[name]), max(times[name])] for name in STEPS},
        "ratio_plain": medians["plain"] / medians["ours"],
        "ratio_floor": medians["ours"] / medians["floor"],
        "tokens_per_second": 1e3 * tokens / medians["ours"],
        "plain_tokens_per_second": 1e3 * tokens / medians["plain"],
        "peak_memory_mb": memory["ours"],
        "plain_peak_memory_mb": memory["plain"],
        "shares": shares,
        "floor_ways": ways,
    }


def measure_rest(config: Config, corpus: Corpus, device: torch.device) -> dict[str, float]:
    """Seconds of tokenizing, of a start to its first step, of evaluation at one column; generated tokens/s."""
    hardware.keep_memory()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        load_corpus(replace(config.data, cache_dir=folder))
        result["tokenizing_s"] = time.perf_counter() - start
        result["start_to_first_step_s"] = _start_to_first_step(config, folder)
    model = LSTMLanguageModel(config.model, len(corpus.vocabulary)).to(device)
    start = time.perf_counter()
    evaluate_stream(model, corpus.splits["test"])
    result["evaluation_1_column_s"] = time.perf_counter() - start
    start, length = time.perf_counter(), 1000
    with torch.no_grad():
        model.decoder.bias[corpus.vocabulary.eos] = -1e9  # no line ends, so that all tokens are generated
    list(sample(model, corpus.vocabulary, [[corpus.vocabulary.eos]], 1, Sampling(length), seed=0))
    result["generation_tokens_per_second"] = length / (time.perf_counter() - start)
    return result


def _start_to_first_step(config: Config, folder: str) -> float:
    """Seconds from `python scripts/train.py` to the line of its first step, token ids cached, no trackers."""
    (Path(folder) / "config.yaml").write_text(json.dumps(config.to_dict()))
    script = Path(__file__).parent / "train.py"
    overrides = ["--tracking.trackers=[]", "--train.log_every=1", f"--train.run_dir={folder}/run"]
    command = [sys.executable, str(script), "--config", f"{folder}/config.yaml", *overrides]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"\bepoch 1/[\d,]+, step 1/", line):
                break
        else:
            raise UsageError("scripts/train.py did not reach its first step")
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def show(result: dict[str, Any]) -> None:
    """The result for the eye."""
    for name in STEPS:
        low, high = result[f"{name}_ms_min_max"]
        print(f"{name:6} {result[f'{name}_ms']:9.2f} ms/step   ({low:.2f} to {high:.2f})")
    print(f"ours is {result['ratio_plain']:.2f} x as fast as plain and takes {result['ratio_floor']:.2f} x the floor")
    for part, way in result["floor_ways"].items():
        print(f"floor, {part}: {way}")
    speeds = f"{result['tokens_per_second']:,.0f} tokens/s (plain {result['plain_tokens_per_second']:,.0f})"
    print(f"{speeds}, {result['epoch_s']:.1f} s an epoch")
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in result["shares"].items())
    print(f"share of a step, as the host sees it: {shares}")
    print(f"peak memory {result['peak_memory_mb']:.0f} MiB above the imported process (plain {result['plain_peak_memory_mb']:.0f})")
    if "tokenizing_s" in result:
        print(
            f"tokenizing {result['tokenizing_s']:.1f} s; start to first step {result['start_to_first_step_s']:.1f} s; "
            f"evaluation of the test split at 1 column {result['evaluation_1_column_s']:.1f} s; "
            f"generation {result['generation_tokens_per_second']:,.0f} tokens/s"
        )
    print(f"{result['hardware']}, {result['threads']} threads, torch {torch.__version__}, {result['precision']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], help="precision of `ours`; default: the configuration's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads; default: physical cores")
    parser.add_argument("--steps", type=int, default=20, help="steps of each repeat")
    parser.add_argument("--ranks", type=int, nargs="+", help="instead: ms/step for each of these numbers of ranks, as JSON lines")
    parser.add_argument("--heads", action="store_true", help="instead: head and loss alone, ours beside others, as JSON lines")
    parser.add_argument("--full", action="store_true", help="also tokenizing, start, evaluation, generation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options, rest = parser.parse_known_args()
    config = load_config(rest)
    precision, threads = options.precision or config.train.precision, options.threads or config.train.threads
    # Both loops train with Adam, whatever a preset says.
    config = replace(config, train=replace(config.train, precision=precision, threads=threads), optim=OptimConfig())
    config = launch.resolve_precision(config)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check(device.type != "cuda" or torch.cuda.is_available(), "--device cuda: there is no GPU here")
    corpus = load_corpus(config.data)
    table = Table(corpus.splits["train"], config.data.batch_size)
    needed, there = 2 * REPEATS * options.steps, len(list(table.windows(config.data.bptt)))
    check(needed <= there, f"--steps {options.steps} needs {needed} segments, and the training split has {there}: lower it")
    threads = config.train.threads or hardware.default_threads()
    torch.set_num_threads(threads)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    rows: list[dict[str, Any]] = []
    if options.heads:
        rows = measure_heads(config, corpus, device, options.steps)
    elif options.ranks:
        rows = measure_ranks(config, options.ranks, options.steps)
    if rows:
        print("\n".join(map(json.dumps, rows)))
        return 0
    result = measure(config, device, options.steps)
    result |= {
        "epoch_s": result["ours_ms"] / 1e3 * there,
        "device": device.type,
        "hardware": hardware.device_kind(device) if device.type == "cuda" else processor(),
        "precision": config.train.precision,
        "threads": threads,
        "torch": torch.__version__,
    }
    if options.full:
        result |= measure_rest(config, corpus, device)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
