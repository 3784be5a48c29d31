"""What a run is made of: the data as ids, the table, the model, the step; and the memory for it, known before any of it is taken."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from lstmlm.config import Config, as_written
from lstmlm.console import UserError, check
from lstmlm.data.corpus import Corpus, load_corpus
from lstmlm.data.table import Table
from lstmlm.data.vocabulary import Vocabulary
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import load
from lstmlm.runtime.distributed import check_alike, fail_together, main_tensors, main_value, together_however_long
from lstmlm.runtime.hardware import cores, free_memory, local_ranks
from lstmlm.training.optimizer import KEPT
from lstmlm.training.segments import steps_per_epoch
from lstmlm.training.step import TrainStep


def build(config: Config, accelerator: Accelerator, own_vocabulary: Path | None = None) -> tuple[Corpus, TrainStep]:
    """Read the data, and make the model and its step; every rank calls it, with the precision resolved.

    With `train.init_from` a run begins with that model's vocabulary and weights. Where it goes on, `own_vocabulary` is the vocabulary's
    file in its own model, and the checkpoint has the weights.
    """
    vocabulary, weights = _load_origin(config, accelerator, own_vocabulary) if config.train.init_from else (None, None)
    with fail_together(accelerator), together_however_long(accelerator, "still prepare the data", config.train.timeout_minutes):
        corpus = load_corpus(config.data, vocabulary, cores())
    check_alike("data", {"fingerprint of the tokens": corpus.fingerprint[:12]})
    stream, columns = corpus.splits["train"], config.data.batch_size
    told = f"data.batch_size is {columns}, but the training split has only {len(stream) - 1} pairs of input and target"
    check(columns < len(stream), f"{told}, and every column needs one: lower it")
    with fail_together(accelerator):
        _check_memory(config, len(corpus.vocabulary), len(stream), accelerator)
    table = Table(stream, columns, accelerator.process_index, accelerator.num_processes, accelerator.device)
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(config.model, len(corpus.vocabulary))
    if weights:
        model.load_weights(weights)
    total_steps = config.train.epochs * steps_per_epoch(config, table.rows)
    total_steps = min(total_steps, config.train.max_steps or total_steps)
    return corpus, TrainStep(config, accelerator, model, table, total_steps)


def _load_origin(config: Config, accelerator: Accelerator, own: Path | None) -> tuple[Vocabulary, dict[str, Tensor] | None]:
    """Vocabulary and weights of `train.init_from`, as the main rank reads them. A run that goes on has its `own` vocabulary alone."""
    vocabulary = weights = None
    with fail_together(accelerator), together_however_long(accelerator, "still load the model", config.train.timeout_minutes):
        if accelerator.is_main_process and own is not None:
            vocabulary, weights = Vocabulary.load(own), {}  # the checkpoint has the weights
        elif accelerator.is_main_process:
            saved = load(config.train.init_from, device="cpu")
            _check_settings(config, saved.model, saved.vocabulary)
            vocabulary, weights = saved.vocabulary, saved.model.weights()
    return main_value(accelerator, vocabulary), main_tensors(accelerator, weights)


def _check_settings(config: Config, model: LSTMLanguageModel, vocabulary: Vocabulary) -> None:
    """Refuse a configuration that describes another model or vocabulary than the one that the run is to begin with."""
    sizes = ["embedding_size", "num_layers", "tie_weights"]
    if model.config.layer_sizes != config.model.layer_sizes:  # a single tied layer does not have hidden_size units
        sizes.insert(1, "hidden_size")
    rules = ("level", "tokenizer", "lowercase", "normalize")
    has = {f"model.{name}": getattr(model.config, name) for name in sizes}
    has |= {f"data.{name}": getattr(vocabulary, name) for name in rules}
    has["data.min_count"] = 1  # no vocabulary is built
    if vocabulary.level == "bpe" or config.data.max_size is not None:
        has["data.max_size"] = len(vocabulary)
    values = config.to_flat_dict()
    differing = {key: value for key, value in has.items() if values[key] != value}
    options = [f"--{key} {as_written(value)}" for key, value in differing.items()]
    origin = config.train.init_from
    check(not options, f"train.init_from {origin} is another model than the configuration describes: say {' '.join(options)}")


def _check_memory(config: Config, vocab_size: int, tokens: int, accelerator: Accelerator) -> None:
    """Refuse a run that certainly does not fit the memory that the ranks of a host share. What is counted is less than what is used.

    `tokens` is the length of the training stream.
    """
    with torch.device("meta"):
        parameters = LSTMLanguageModel(config.model, vocab_size).num_parameters
    ranks = local_ranks()
    rows, columns = -(-tokens // config.data.batch_size), -(-config.data.batch_size // accelerator.num_processes)
    # Of each place of a segment, backward needs the embedding and, for every layer, four gates and the cell.
    places, units = min(config.data.bptt, rows) * columns, config.model.embedding_size
    units += 5 * sum(config.model.layer_sizes)
    activations = places * units * (2 if config.train.precision in ("bf16", "fp16") else 4)
    kept = 1 + len(KEPT[config.optim.name]) + (config.optim.average is not None)  # the weight and what is kept beside it, in float32
    trained = 4 * (kept + 1) * parameters  # with the gradient
    saved = 2 * 4 * kept * parameters  # a checkpoint, gathered on the host and then made a file's content
    each = trained + activations
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
