"""Write the record of a run into results/: `python scripts/publish_results.py runs/a --name wikitext2-a`.

results/NAME/
    config.yaml          the configuration as resolved, without the places of one machine; `--config` reads it
    metrics.jsonl        as the run wrote it
    summary.json         the final figures, where the run was finished
    run.json             command, parameters, machine, versions, interruptions, seconds of training
    evaluations/*.json   what `measure_protocols.py` measured
"""

import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from lstmlm.config import PLACES, argument_parser, as_written, flatten, load_config, parse, presets
from lstmlm.console import UserError, check, print_result, run_script
from lstmlm.data.sources import DEFAULT_DATASET, DEFAULT_SUBSET, dataset_name
from lstmlm.files import replace_file
from lstmlm.model.pretrained import load, model_name
from lstmlm.records import to_yaml
from lstmlm.runtime.hardware import default_threads
from lstmlm.training import checkpoint
from lstmlm.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]


def processor() -> str:
    """Name of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def publish_results(run: str | Path, folder: Path, dataset: str | None = None) -> None:
    """Write the record of a run, finished or not, on the machine that it ran on. What else is in the folder stays."""
    directory = RunDirectory(run)
    saved = next((values for _, values in checkpoint.whole(directory.checkpoints)), None)
    if saved is None or not directory.metrics.exists():
        raise UserError(f"{run} holds no run with a checkpoint and a line of metrics: name the directory of a run")
    config = saved.config.to_dict()
    for key in PLACES:
        section, name = key.split(".")
        del config[section][name]
    if config["train"]["init_from"]:
        config["train"]["init_from"] = model_name(config["train"]["init_from"])
    config["data"]["dataset"] = dataset or dataset_name(config["data"]["dataset"])
    content = directory.metrics.read_bytes()
    on_gpu = b'"memory/gpu"' in content
    record = {
        "command": command(config),
        "parameters": load(directory.model, device="cpu").model.num_parameters,
        "processor": processor(),
        "threads": config["train"]["threads"] or default_threads(),
        "gpu": torch.cuda.get_device_name() if on_gpu and torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), **saved.versions},
        "interruptions": saved.tracking.resume_count,
        "training_seconds": round(saved.seconds.training),
    }
    files = {
        "config.yaml": to_yaml(config),
        "metrics.jsonl": content[: content.rfind(b"\n") + 1],  # a run that goes on may be within a line
        "run.json": json.dumps(record, indent=2).encode() + b"\n",
    }
    if directory.summary.exists():
        files["summary.json"] = directory.summary.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)  # of a run that has grown since
    for name, text in files.items():
        replace_file(folder / name, text)


def command(config: dict[str, Any]) -> str:
    """The shortest command line of a run: a file of configs/, or none, and what differs from it."""
    values, lines = flatten(config), []
    if (values["data.dataset"], values["data.subset"]) == (DEFAULT_DATASET, DEFAULT_SUBSET):
        values["data.subset"] = None  # as the presets have it
    for path in (None, *presets().values()):
        base = load_config(["--config", str(path)] if path else []).to_flat_dict()
        words = ["python", "scripts/train.py", *(["--config", f"configs/{path.name}"] if path else [])]
        for key, value in values.items():
            if value != base[key]:
                words += [f"--{key}", as_written(value)]
        lines.append(shlex.join(words))
    return min(lines, key=len)


def main() -> int:
    parser = argument_parser("Write the record of a run, finished or not, into results/.")
    parser.add_argument("run", type=str, help="Directory of the run; start this on the machine that it ran on.")
    parser.add_argument("--name", type=str, required=True, help="Folder below results/.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Public name of the data, owner/name.")
    args = parse(parser)
    folder = ROOT / "results" / args.name
    check((ROOT / "results").resolve() in folder.resolve().parents, f"--name {args.name} is not below results/: name another folder")
    publish_results(args.run, folder, args.dataset)
    print_result(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
