"""What a run tells a person at its start and at its end."""

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lstmlm.config import Config, ModelConfig
from lstmlm.console import duration, perplexity
from lstmlm.data import toy
from lstmlm.data.corpus import Corpus
from lstmlm.runtime.hardware import device_kind, git_state, package_versions
from lstmlm.training.step import TrainStep

FEW_STEPS = 500  # below that a run hardly learns anything


def opening(corpus: Corpus, train_step: TrainStep) -> list[str]:
    """What is trained, on what, how, and where it goes."""
    folder = train_step.config.train.run_dir
    rows = {"writes to": str(folder), "to stop": f"Ctrl-C or SIGTERM; then go on with: {resume_command(folder)}"}
    return _table(_described(corpus, train_step) | rows)


def dry_run(corpus: Corpus, train_step: TrainStep, figures: dict[str, float]) -> list[str]:
    """What would be trained, and what it needs, as `training.dry_run` measures it. The last line is the result."""
    gpu = f", gpu {_size(figures['memory/gpu'])}" if "memory/gpu" in figures else ""
    kept = train_step.config.train.keep_checkpoints
    rows = {
        "losses": f"{figures['train/loss']:.4f} in one training step, {figures['valid/loss']:.4f} in one of validation",
        "time": f"about {duration(figures['time/total'])}: {1000 * figures['time/step']:,.0f} ms a step, "
        f"{duration(figures['time/validation'])} a validation, {duration(figures['time/scoring'])} the scoring at the end",
        "memory": f"host {_size(figures['memory/host'])}{gpu} at most, of one rank",
        "disk": f"{_size(figures['disk/needed'])}: {kept} checkpoint{'s' * (kept > 1)} of {_size(figures['disk/checkpoint'])} and one "
        f"while it is written, model {_size(figures['disk/model'])} and its weights twice more for a while; "
        f"{_size(figures['disk/free'])} are free",
        "result": "a run can start; nothing was written but to the caches of its data",
    }
    return _table(_described(corpus, train_step) | rows)


def _described(corpus: Corpus, train_step: TrainStep) -> dict[str, str]:
    config, accelerator = train_step.config, train_step.accelerator
    data, model, train = config.data, config.model, config.train
    ranks = accelerator.num_processes
    least, most = data.batch_size // ranks, -(-data.batch_size // ranks)
    shares = f"{least}" if least == most else f"{least} or {most}"
    device = device_kind(accelerator.device)
    if accelerator.device.type == "cpu" and not torch.cuda.is_available():
        device += ", no CUDA GPU found"
    epochs = train_step.total_steps / train_step.steps_per_epoch
    few = "" if train_step.total_steps >= FEW_STEPS else "; few: more epochs, fewer columns (data.batch_size) or shorter segments make more"
    return {
        "data": data.dataset,
        **dict(line.split(": ", 1) for line in corpus.lines()),
        "model": f"{model.shape} LSTM, {train_step.model.num_parameters:,} parameters, {_dropout(model)}"
        + (f", begun with {train.init_from}" if train.init_from else ""),
        "device": f"{device}, {train.precision}, {torch.get_num_threads()} CPU threads a rank",
        "ranks": f"{ranks}, {shares} of {data.batch_size} columns each; segments of {'about ' * bool(data.bptt_jitter)}{data.bptt} rows",
        "steps": f"{train_step.total_steps:,}, {epochs:,.4g} epochs of {train_step.steps_per_epoch:,}{few}",
    }


def _dropout(model: ModelConfig) -> str:
    """What is dropped: of the embeddings and each layer's output, then of the types and the recurrent weights."""
    units = [f"{p:g}" for p in model.unit_dropout]
    kinds = {"types": model.dropout_types, "weights": model.dropout_weights}
    named = "".join(f", {name} {p:g}" for name, p in kinds.items() if p)
    return f"dropout {'-'.join(units if len({*units}) > 1 else units[:1])}{' locked' * model.dropout_locked}{named}"


def facts(corpus: Corpus, train_step: TrainStep) -> dict[str, Any]:
    """What a reader of the run should know, for the trackers: the configuration, and what came of it here."""
    return {
        **train_step.config.to_dict(),
        "ranks": train_step.accelerator.num_processes,
        "device": device_kind(train_step.accelerator.device),
        "parameters": train_step.model.num_parameters,
        "vocab_size": len(corpus.vocabulary),
        "data_fingerprint": corpus.fingerprint,
        **git_state(),
        "versions": package_versions(),
    }


def closing(config: Config, summary: dict[str, Any], steps_per_epoch: int, run_dir: Path) -> list[str]:
    """The results of a run, as in `summary.json`, and commands to try next. The last line is the result."""
    seconds, valid, test = summary["seconds"], summary["valid"], summary["test"]
    speed = f", {summary['tokens'] / seconds['training']:,.0f} tokens/s in training" if seconds["training"] else ""
    told = ", ".join(f"{name} {duration(seconds[name])}" for name in ("training", "evaluation", "saving", "tracking"))
    command, folder = typed("lstmlm", "lstmlm"), shlex.quote(str(run_dir))
    best_step = summary["best_step"]
    where = f"epoch {-(-best_step // steps_per_epoch)}, step {best_step:,}: " if best_step else ""  # older checkpoints
    if not best_step and config.train.init_from:
        where = "the model that it began with: "
    # The vocabulary of a model that the run began with may be of another text.
    proof = {} if config.train.init_from else toy.proof(config.data, test["ppl"])
    compare = {}
    if test["word_ppl"] != test["ppl"]:  # the tokens are not the words: what compares with models of other tokens
        both = {"test": test, "validation": valid}.items()
        each = [f"{name} ppl per word {perplexity(of['word_ppl'])}, {of['bpc']:.4f} bits per character" for name, of in both]
        compare["compare"] = "; ".join(each)
    rows = {
        "best": f"{where}validation ppl {perplexity(summary['best'])} while training",
        "time": f"{duration(seconds['total'])} ({told}){speed}",
        "next": f'{command} generate --model {folder} --prompt "" --count 3',
        **({"": f"{command} report {folder}"} if find_spec("matplotlib") and find_spec("jinja2") else {}),  # the extra `report`
        **compare,
        **proof,
        "result": f"test ppl {perplexity(test['ppl'])}, validation ppl {perplexity(valid['ppl'])} "
        f"({valid['columns']} column); model in {run_dir / 'model'}",
    }
    return _table(rows)


def typed(name: str, module: str = "") -> str:
    """A command of this environment, or the module that does the same, as it can be typed here, be the environment active or not."""
    found, python = shutil.which(name), Path(sys.executable)
    if found and Path(found).parent == python.parent:
        return name
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return shlex.quote(str(python)) + (module and f" -m {module}")


def resume_command(run_dir: str | Path | None) -> str:
    """How to resume a run: the command; or what to add to it, where this process cannot tell the whole command."""
    script, options = Path(sys.argv[0]), f"--train.run_dir {shlex.quote(str(run_dir))} --train.resume true"
    if "WORLD_SIZE" in os.environ:
        return f"the same command (on every host) with {options}"
    if script.name == "lstmlm" or (script.name, script.parent.name) == ("__main__.py", "lstmlm"):
        return f"{typed('lstmlm', 'lstmlm')} train {options}"
    if script.name == "train.py":
        return f"{typed('python')} {shlex.quote(str(script))} {options}"
    return f"the same call with train.run_dir {run_dir} and train.resume true"


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _table(rows: dict[str, str]) -> list[str]:
    return [f"{name:<10} {value}" for name, value in rows.items()]
