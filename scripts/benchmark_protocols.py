"""How fast texts are scored: `python scripts/benchmark_protocols.py --model runs/a > results/speed/protocols.json`.

Everything takes turns within one process, on the beginning of the test split: the table of `lstmlm score` and a plain loop that reads
one token after the other; each protocol of `lstmlm evaluate`; and training, whose step comes last, as it sets up the process for itself.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice, pairwise

import torch
from benchmarks import turns
from publish_results import processor

from lstmlm.config import Config, DataConfig, TrainConfig, argument_parser, parse
from lstmlm.console import check, print_line, print_result, run_script
from lstmlm.data.table import Table
from lstmlm.evaluation.adaptation import Cache, CacheDynamic, Dynamic, training_rms
from lstmlm.evaluation.protocol import Static, measure
from lstmlm.evaluation.surprisal import By, Reader, read_windows
from lstmlm.evaluation.surprisal_tables import ScoreTable, Scoring, sentences_of
from lstmlm.evaluation.text import Reset, Text, split_text
from lstmlm.model.pretrained import SavedModel, load
from lstmlm.runtime import hardware, launch

PLAIN_TOKENS = 2_000  # that the plain loop reads in a turn
TRAIN_COLUMNS, TRAIN_ROWS = 20, 30  # as the reference model is trained
PROTOCOLS = {
    "static": Static(),
    "static, 10 columns": Static(columns=10),
    "cache": Cache(),
    "cache, 10 columns": Cache(columns=10),
    "dynamic": Dynamic(),
    "dynamic, 10 columns": Dynamic(columns=10),
    "dynamic, 20 columns of 30 rows": Dynamic(bptt=30, columns=20),
    "cache+dynamic": CacheDynamic(),
}


def plain_loop(saved: SavedModel, text: Text) -> int:
    """Surprisals as everybody computes them: one token, one softmax, one number at a time."""
    model, ids = saved.model, text.stream[: PLAIN_TOKENS + 1].tolist()
    state, surprisals = model.initial_state(1), []
    with torch.no_grad():
        for token, target in pairwise(ids):
            logits, state = model.logits(torch.tensor([[token]], device=saved.device), state)
            surprisals.append(-torch.log_softmax(logits[0, 0], -1)[target].item() / math.log(2))
    return len(surprisals)


def score_table(saved: SavedModel, text: Text, reset: Reset, by: By) -> int:
    """The rows of `lstmlm score`; how many tokens they are of."""
    scoring, reader = Scoring(by=by, reset=reset, eos=True), Reader(saved, eos=True)
    table = ScoreTable([saved], [""], scoring)
    sentences = sentences_of([("test", lambda: ((line, {}) for line in text.lines()))], scoring)
    for window in read_windows(sentences, [reader]):
        list(table.rows(window))
    return reader.tokens


def training(saved: SavedModel, text: Text, precision: str, threads: int | None) -> Callable[[], int]:
    """An epoch over the same tokens, in the step of scripts/train.py."""
    steps = len(list(Table(text.stream, TRAIN_COLUMNS).windows(TRAIN_ROWS)))
    data = DataConfig(batch_size=TRAIN_COLUMNS, bptt=TRAIN_ROWS)
    train = TrainConfig(precision=precision, threads=threads, log_every=steps)  # type: ignore[arg-type]
    config = launch.resolve_precision(Config(data=data, model=saved.model.config, train=train))
    train_step, step = turns.training(config, text.stream, saved.model)

    def epoch() -> int:
        for i in range(steps):
            step(i)  # the last one reads the losses
        return train_step.table.num_targets

    return epoch


def beginning(text: Text, tokens: int, eos: int) -> Text:
    """The lines of a text that end within its first tokens; at least one."""
    lines = max(1, int((text.stream[:tokens] == eos).sum()))
    stream = text.stream[: int((text.stream == eos).nonzero()[lines - 1]) + 1]
    block = "".join(f"{line}\n" for line in islice(text.lines(), lines))
    return dataclasses.replace(text, stream=stream, characters=len(block), blocks=lambda: iter([block]))


def main() -> int:
    parser = argument_parser("Seconds and tokens a second of scoring, of each protocol and of training, in turns.")
    parser.add_argument("--model", type=str | None, default=None, help="A model's folder or a run's.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="Where token ids are kept.")
    parser.add_argument("--tokens", type=int, default=20_000, help="Of the test split.")
    parser.add_argument("--turns", type=int, default=3, help="Of each; the least time and the median are told.")
    parser.add_argument("--precision", type=str, default="auto", help="Of training; evaluation is float32.")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; null = the physical cores.")
    args = parse(parser)
    check(args.turns >= 1, f"--turns must be at least 1, not {args.turns}")
    hardware.use_machine(args.threads)
    saved = load(args.model, dataset=args.dataset, cache_dir=args.cache_dir)
    text = beginning(split_text(saved, "test"), args.tokens, saved.vocabulary.eos)
    least = TRAIN_COLUMNS * TRAIN_ROWS
    check(len(text.stream) > least, f"a step of training takes {least} tokens, and there are {len(text.stream)} to measure: raise --tokens")
    training_rms(saved)  # in no time below
    works: dict[str, Callable[[], int]] = {
        "plain loop": lambda: plain_loop(saved, text),
        "score, reset line": lambda: score_table(saved, text, "line", "token"),
        "score, reset line, by word": lambda: score_table(saved, text, "line", "word"),
        "score, reset never": lambda: score_table(saved, text, "never", "token"),
        **{
            name: lambda protocol=protocol: measure(saved, text, protocol).targets  # type: ignore[misc]
            for name, protocol in PROTOCOLS.items()
        },
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    tokens: dict[str, int] = {}

    def take_turn(name: str, work: Callable[[], int]) -> None:
        begun = time.perf_counter()
        tokens[name] = work()
        times.setdefault(name, []).append(time.perf_counter() - begun)
        print_line(f"{name}: {tokens[name]:,} tokens in {times[name][-1]:.2f} s")

    for _ in range(args.turns):
        for name, work in works.items():
            take_turn(name, work)
    epoch = training(saved, text, args.precision, args.threads)
    epoch()  # a warm-up
    for _ in range(args.turns):
        take_turn(f"training, {args.precision}", epoch)
    rows = {
        name: {
            "tokens": tokens[name],
            "seconds": [round(seconds, 3) for seconds in measured],
            "tokens_per_second": round(tokens[name] / min(measured)),
            "median_tokens_per_second": round(tokens[name] / statistics.median(measured)),
        }
        for name, measured in times.items()
    }
    device = hardware.device_kind(saved.device)
    machine = {"device": device, "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print_result(json.dumps({**machine, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
