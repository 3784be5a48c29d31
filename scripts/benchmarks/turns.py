"""Processes that take turns, so that each keeps its own memory and a change in the machine's speed meets all of them."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from lstmlm import Config, LSTMLanguageModel
from lstmlm.data.corpus import load_corpus
from lstmlm.data.table import Table
from lstmlm.runtime import hardware, launch
from lstmlm.training.step import TrainStep

REPEATS = 7  # turns of each process; the first is a warm-up
Step = Callable[[int], None]
MakeStep = Callable[..., Step]  # of a configuration, a corpus and a device


def worker(make_step: MakeStep, config: Config, device: torch.device, pipe: Connection) -> None:
    """A process that does the steps it is told to: answers with their times in ms, or with what a given function makes of them."""
    try:
        torch.set_num_threads(config.train.threads or hardware.default_threads())
        torch.manual_seed(config.train.seed)
        corpus = load_corpus(config.data)
        torch.optim.Adam([torch.zeros(1)])  # the first optimizer imports its compiler
        imported = peak_memory(device)
        step = make_step(config, corpus, device)
        pipe.send(None)
        while (todo := pipe.recv()) is not None:
            first, count, measure = todo
            if measure is None:
                pipe.send((time_steps(step, first, count, device), peak_memory(device) - imported))
            else:
                pipe.send(measure(step, first, count))
    except Exception as error:  # told in the parent, in one line
        pipe.send(error)


@contextmanager
def workers(steps: dict[str, MakeStep], config: Config, device: torch.device) -> Iterator[dict[str, Connection]]:
    """A process for each step, ready for its first."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, make_step in steps.items():
        pipes[name], other = context.Pipe()
        processes.append(context.Process(target=worker, args=(make_step, config, device, other), daemon=True))
        processes[-1].start()
        receive(pipes[name])
    yield pipes
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()


def take_turns(pipes: dict[str, Connection], steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each process's steps, and its peak memory in MiB."""
    times: dict[str, list[float]] = {name: [] for name in pipes}
    memory = {}
    for repeat in range(REPEATS):
        for name, pipe in pipes.items():
            pipe.send((repeat * steps, steps, None))
            measured, memory[name] = receive(pipe)
            if repeat:
                times[name] += measured
    return times, memory


def receive(pipe: Connection) -> Any:
    """A process's answer; its exception is raised here."""
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def training(config: Config, stream: Tensor, model: LSTMLanguageModel) -> tuple[TrainStep, Step]:
    """The step of scripts/train.py on a stream, of this rank; losses are read at its log interval."""
    accelerator = launch.start(config)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    table = Table(stream, config.data.batch_size, rank, world_size, accelerator.device)
    windows = list(table.windows(config.data.bptt))
    train_step = TrainStep(config, accelerator, model, table, total_steps=len(windows))

    def step(i: int) -> None:
        train_step(windows[i], step=i, segment=i)
        if (i + 1) % config.train.log_every == 0:
            train_step.read()

    return train_step, step


def time_steps(step: Step, first: int, count: int, device: torch.device) -> list[float]:
    """Milliseconds of each step; on a GPU the mean of all, as its queue must not be stopped between them."""
    if device.type == "cpu":
        times = []
        for i in range(first, first + count):
            start = time.perf_counter()
            step(i)
            times.append(1e3 * (time.perf_counter() - start))
        return times
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(first, first + count):
        step(i)
    torch.cuda.synchronize()
    return [1e3 * (time.perf_counter() - start) / count]


def peak_memory(device: torch.device) -> float:
    """MiB so far: of the process on a CPU, of the allocator on a GPU."""
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else hardware.peak_memory(device)["host"]
    return peak / 2**20
