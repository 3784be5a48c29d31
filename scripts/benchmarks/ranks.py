"""What ranks cost on one host: the step with and without its all-reduce."""

import multiprocessing
import os
import socket
import statistics
from multiprocessing.connection import Connection

from benchmarks.turns import REPEATS, receive, time_steps, training

from lstmlm import Config, LSTMLanguageModel
from lstmlm.data.corpus import load_corpus


def measure_ranks(config: Config, world_sizes: list[int], steps: int) -> list[dict[str, float]]:
    """For each number of ranks on this host: ms/step with and without the all-reduce, in turns."""
    context = multiprocessing.get_context("spawn")
    results = []
    for world_size in world_sizes:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        pipes, processes = [], []
        for rank in range(world_size):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)} if world_size > 1 else {}
            pipe, other = context.Pipe()
            arguments = (environment if world_size > 1 else {}, config, steps, other)
            processes.append(context.Process(target=rank_worker, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(pipe)
        synced, alone = zip(*(receive(pipe) for pipe in pipes), strict=True)  # every rank waits for the slowest
        for process in processes:
            process.join()
        step_ms, compute_ms = statistics.median(max(synced, key=sum)), statistics.median(max(alone, key=sum))
        share, speed = max(0.0, 1 - compute_ms / step_ms), 1e3 * config.data.batch_size * config.data.bptt / step_ms
        times = {"ms": step_ms, "compute_ms": compute_ms}
        results.append({"ranks": world_size, **times, "communication_share": share, "tokens_per_second": speed})
    return results


def rank_worker(environment: dict[str, str], config: Config, steps: int, pipe: Connection) -> None:
    """One rank: times of steps with the all-reduce and, in turns, without it."""
    try:
        os.environ.update(environment)
        corpus = load_corpus(config.data)
        train_step, step = training(config, corpus.splits["train"], LSTMLanguageModel(config.model, len(corpus.vocabulary)))
        accelerator = train_step.accelerator
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(REPEATS):
            measured = time_steps(step, 2 * repeat * steps, steps, accelerator.device)
            with accelerator.no_sync(train_step.wrapped_model):
                alone = time_steps(step, (2 * repeat + 1) * steps, steps, accelerator.device)
            if repeat:
                times[0].extend(measured)
                times[1].extend(alone)
        pipe.send(times)
        accelerator.end_training()
    except Exception as error:  # told in the parent, in one line
        pipe.send(error)
