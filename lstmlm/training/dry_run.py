"""A dry run: all that a run is made of, one step, one segment of validation; what it needs is told, and nothing stays."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from lstmlm.config import Config
from lstmlm.console import print_line
from lstmlm.evaluation.perplexity import SEGMENT_TOKENS, evaluate_stream
from lstmlm.files import user_path
from lstmlm.runtime import launch
from lstmlm.runtime.distributed import fail_together, main_value
from lstmlm.runtime.hardware import peak_memory
from lstmlm.training import banner
from lstmlm.training.build import build
from lstmlm.training.run import Outcome
from lstmlm.training.run_directory import RunDirectory


def dry_run(config: Config) -> Outcome:
    """Try whether a run could start, and measure what it needs.

    Args:
        config: With the precision resolved.

    Returns:
        With this `summary`: `train/loss` and `valid/loss` of one step, in nats; `memory/host` and, where there is one, `memory/gpu`, the
        most that the main rank used, and `disk/needed`, `disk/checkpoint`, `disk/model` and `disk/free`, all in bytes.

    Raises:
        UserError: Why the run could not start.
    """
    train = config.train
    with launch.started(config) as accelerator, _scratch_cache(config, accelerator) as cache:
        with fail_together(accelerator):
            if accelerator.is_main_process and train.run_dir is not None and not train.resume:
                RunDirectory(train.run_dir).refuse_to_overwrite()
        scratch_config = replace(config, data=replace(config.data, cache_dir=str(cache)))
        corpus, train_step = build(scratch_config, accelerator, train.init_from)
        window = next(train_step.table.windows(config.data.bptt, train.accumulate))
        train_step(window, 0, 0)
        (step,) = train_step.read()
        segment = corpus.splits["validation"][: SEGMENT_TOKENS * accelerator.num_processes + 1]
        valid = evaluate_stream(train_step.model, segment, train.eval_columns, accelerator)
        tensors, _ = train_step.state_dict()
        sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
        checkpoint = sum(sizes.values())
        model = sum(size for name, size in sizes.items() if name.startswith("model.")) + len(
            corpus.vocabulary.to_bytes()
        )
        memory = peak_memory(accelerator.device)
        train_step.close()
        place = user_path(train.run_dir or "runs").absolute()
        figures = {
            "train/loss": step.nll / step.num_targets,
            "valid/loss": valid.loss,
            **{f"memory/{name}": used for name, used in memory.items()},
            "disk/needed": (train.keep_checkpoints + 1) * checkpoint + model,
            "disk/checkpoint": checkpoint,
            "disk/model": model,
            "disk/free": shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free,
        }
        if accelerator.is_main_process:
            for line in banner.dry_run(config, corpus, train_step, accelerator, figures):
                print_line(line)
        return Outcome(place, summary=figures)


@contextmanager
def _scratch_cache(config: Config, accelerator: Accelerator) -> Iterator[Path]:
    """A folder that the ranks of a host share: what the cache of token ids has, and room for what it has not."""
    folder = Path(tempfile.gettempdir()) / main_value(accelerator, f"lstmlm-{uuid.uuid4().hex}")
    try:
        with fail_together(accelerator):
            if accelerator.is_local_main_process:
                folder.mkdir(mode=0o700)
                cache = user_path(config.data.cache_dir).absolute()
                for pattern in (
                    "*.tokens",
                    "*.vocab.json",
                ):  # whole files, never written to; a *.tmp would be, through the link
                    for file in cache.glob(pattern):
                        (folder / file.name).symlink_to(file)
        yield folder
    finally:
        if accelerator.is_local_main_process:
            shutil.rmtree(folder, ignore_errors=True)
