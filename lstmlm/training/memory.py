"""The memory that a run needs, known before any of it is taken."""

import torch
from accelerate import Accelerator

from lstmlm.config import Config
from lstmlm.console import UserError
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.runtime.hardware import free_memory, local_ranks
from lstmlm.training.optimizer import kept_tensors


def check_memory(config: Config, vocab_size: int, tokens: int, accelerator: Accelerator) -> None:
    """Refuse a run that certainly does not fit the memory, before any of it is taken. What is counted is less than what is used.

    Args:
        config: Of the run.
        vocab_size: V.
        tokens: n, length of the training stream.
        accelerator: Of the run; its ranks on this host share the memory.

    Raises:
        UserError: What is needed, and what is free.
    """
    with torch.device("meta"):
        parameters = LSTMLanguageModel(config.model, vocab_size).num_parameters
    ranks = local_ranks()
    rows, columns = -(-tokens // config.data.batch_size), -(-config.data.batch_size // accelerator.num_processes)
    # Of each place of a segment, backward needs the embedding and, for every layer, four gates and the cell.
    places, units = min(config.data.bptt, rows) * columns, config.model.embedding_size
    units += 5 * sum(config.model.layer_sizes)
    segment = places * units * (2 if config.train.precision in ("bf16", "fp16") else 4)
    kept = 1 + kept_tensors(config.optim)  # the weight and what is kept beside it, in float32
    trained = 4 * (kept + 1) * parameters  # with the gradient
    saved = 2 * 4 * kept * parameters  # a checkpoint, gathered on the host and then made a file's content
    each = trained + segment + 8 * rows
    needs = {accelerator.device: each * ranks + saved}
    if accelerator.device.type == "cuda":
        needs = {accelerator.device: each + 4 * rows * columns, torch.device("cpu"): saved}
    for device, need in needs.items():
        free = free_memory(device)
        if need > free:
            sizes = f"{parameters:,} parameters, {columns} columns of {min(config.data.bptt, rows):,} rows at a time"
            raise UserError(
                f"this run needs at least {need / 1e9:,.1f} GB of memory ({device.type}), and {free / 1e9:,.1f} GB are free: {sizes} "
                f"on each of {ranks} rank(s) here; lower model.hidden_size, model.num_layers, data.bptt or data.batch_size"
            )
