"""What a repository shows of its runs: a record of each, a table of the records, and a model to give away.

results/NAME/
    config.yaml          the configuration as resolved, without the places of one machine; `--config` reads it
    metrics.jsonl        as the run wrote it
    summary.json         the final figures, where the run was finished
    run.json             command, machine, versions, interruptions, seconds of training
    evaluations/*.json   what `lstmlm evaluate --json` printed for its model
"""

import dataclasses
import json
import platform
import shlex
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml

from lstmlm.config import PLACES, Config, flatten
from lstmlm.console import UserError, print_line
from lstmlm.data.corpus import fingerprint
from lstmlm.data.sources import SPLITS, dataset_name
from lstmlm.evaluation.evaluate import PROTOCOLS, evaluate
from lstmlm.evaluation.text import split_text
from lstmlm.files import replace_file
from lstmlm.model.pretrained import WEIGHTS, load, model_card, model_folder, model_name, save_pretrained, trained_on
from lstmlm.records import read_json_lines
from lstmlm.runtime.hardware import default_threads, processor
from lstmlm.training import checkpoint
from lstmlm.training.run_directory import RunDirectory

RECORD, EVALUATIONS = "run.json", "evaluations"
BEGIN, END = "<!-- results: made by scripts/results_table.py -->", "<!-- end of results -->"
TOLERANCE = 0.01  # perplexity that rounded weights may cost


def publish_results(run: str | Path, folder: str | Path, dataset: str | None = None) -> None:
    """Write the record of a run, finished or not. What else is in the folder stays.

    Args:
        run: Directory of the run; this machine should be the one it ran on, as the record tells its processor.
        folder: `results/NAME`; made where it does not exist.
        dataset: Name of the data that others know; None = `data.dataset`, of a folder its name alone.

    Raises:
        UserError: There is no run, or nothing was measured yet.
    """
    directory, folder = RunDirectory(run), Path(folder)
    if not directory.config.exists() or not directory.metrics.exists():
        raise UserError(f"{run} holds no run: name a directory with config.yaml and metrics.jsonl")
    config = directory.read_config().to_dict()
    for key in PLACES:
        section, name = key.split(".")
        config[section].pop(name, None)
    if config["train"]["init_from"]:
        config["train"]["init_from"] = model_name(config["train"]["init_from"])
    config["data"]["dataset"] = dataset or dataset_name(config["data"]["dataset"])
    content = directory.metrics.read_bytes()
    content = content[: content.rfind(b"\n") + 1]  # a run that goes on may be within a line
    summary = directory.read_summary()
    saved = next((values for _, values in checkpoint.whole(directory.checkpoints)), None)
    versions = saved.versions if saved else (summary or {}).get("versions", {})
    record = {
        "command": command(config),
        "processor": processor(),
        "threads": config["train"]["threads"] or default_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), **versions},
        "interruptions": saved.tracking.resume_count if saved else None,
        "training_seconds": round(training_seconds(read_json_lines(directory.metrics))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    replace_file(folder / "metrics.jsonl", content)
    replace_file(folder / RECORD, _json(record))
    if summary is not None:
        replace_file(folder / "summary.json", _json(summary))


def command(config: dict[str, Any]) -> str:
    """The shortest command line of a run: what differs from the defaults.

    Args:
        config: As sections.
    """
    defaults = Config().to_flat_dict()
    values = {key: value for key, value in flatten(config).items() if value != defaults.get(key)}
    words = [word if isinstance(word, str) else json.dumps(word) for pair in values.items() for word in pair]
    return shlex.join(["python", "scripts/train.py", *(f"--{w}" if w in values else w for w in words)])


def training_seconds(lines: list[dict[str, Any]]) -> float:
    """Time in steps, from the speeds that `metrics.jsonl` tells."""
    total, before = 0.0, 0
    for line in lines:
        if line.get("train/tokens_per_second"):
            total += (line["tokens"] - before) / line["train/tokens_per_second"]
            before = line["tokens"]
    return total


def results_table(results: str | Path) -> str:
    """All records below a folder, in Markdown: a row for each run, a column for each protocol.

    Args:
        results: Folder of the records' folders.
    """
    folders = sorted(path.parent for path in Path(results).glob(f"*/{RECORD}"))
    if not folders:
        return ""
    heads = ["run", "parameters", *PROTOCOLS, "minutes of training", "command"]
    rows = [heads, ["---"] * len(heads), *map(_row, folders)]
    words = "Perplexity on validation / test, read as one column whose state is never reset."
    return "\n".join([words, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _row(folder: Path) -> list[str]:
    """Cells of a run. A perplexity is `validation / test` at one column, its state never reset, or says what it is."""
    record, lines = (json.loads((folder / RECORD).read_bytes()), read_json_lines(folder / "metrics.jsonl", dict[str, Any]))
    config = yaml.safe_load((folder / "config.yaml").read_bytes())
    figures = {(result["protocol"], result.get("split")): result["ppl"] for result in _evaluations(folder)}
    cells = {protocol: _perplexities(figures, protocol) for protocol in PROTOCOLS}
    parameters = ""
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_bytes())
        parameters = f"{summary['parameters']:,}"
        cells["static"] = " / ".join(f"{summary[split]['ppl']:.2f}" for split in ("valid", "test"))
    elif measured := [line["valid/ppl"] for line in lines if line.get("valid/ppl") is not None]:
        columns, epoch = config["train"]["eval_columns"], f"epoch {lines[-1]['epoch']} of {config['train']['epochs']}"
        cells["static"] = f"{min(measured):.2f} / - (in {epoch}, {columns} columns)"
    threads = f"{record['threads']} CPU thread{'s' * (record['threads'] > 1)}"
    minutes = f"{round(record['training_seconds'] / 60):,} ({record['gpu'] or threads}, {config['train']['precision']})"
    return [f"[{folder.name}](results/{folder.name})", parameters, *cells.values(), minutes, f"`{record['command']}`"]


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Results beside a record that papers' figures compare with: at one column, the state never reset."""
    results = [json.loads(path.read_bytes()) for path in sorted((folder / EVALUATIONS).glob("*.json"))]
    return [result for result in results if result["columns"] == 1 and result.get("reset", "never") == "never"]


def _perplexities(figures: dict[tuple[str, str | None], float], protocol: str) -> str:
    found = [figures.get((protocol, split)) for split in ("validation", "test")]
    return " / ".join("-" if ppl is None else f"{ppl:.2f}" for ppl in found) if any(found) else ""


def with_table(text: str, table: str) -> str:
    """A text whose part between the two markers is the table.

    Raises:
        UserError: The markers are not in it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"the text has no lines {BEGIN} and {END} to write the table between")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def publish_model(run: str | Path, folder: str | Path, dataset: str, place: str | None, name: str, license: str, notes: str) -> None:
    """Write a model to give away: weights in 16 bits where that moves the test perplexity by less than TOLERANCE, else in 32.

    Args:
        run: Directory of the run, finished or not, or of its model.
        folder: Where the model goes.
        dataset: Name of the data that others know.
        place: Where the data is now; None = where training found it.
        name, license, notes: As for `model_card`.

    Raises:
        UserError: The model or the data cannot be had.
    """
    source = model_folder(run)
    saved = load(source, dataset=place)
    model, vocabulary, place = saved.model, saved.vocabulary, saved.data.dataset
    data = trained_on(dataclasses.replace(saved.data, dataset=dataset))
    fingerprints = {split: fingerprint(split_text(saved, split).stream) for split in SPLITS}
    with safetensors.safe_open(source / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    with tempfile.TemporaryDirectory() as candidate:
        exact = evaluate(saved, "test", dataset=place)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            save_pretrained(candidate, model, vocabulary, data, metadata, dtype, fingerprints=fingerprints)
            test = evaluate(candidate, "test", dataset=place)
            print_line(f"{dtype}: test perplexity {test.ppl:.4f}, of the run's own weights {exact.ppl:.4f}")
            if abs(test.ppl - exact.ppl) < TOLERANCE:
                break
        valid = evaluate(candidate, "validation", dataset=place)
    figures = {
        split: {"ppl": result.ppl, "targets": result.targets, "columns": result.columns}
        for split, result in (("validation", valid), ("test", test))
    }
    card = model_card(model, vocabulary, data, figures, name, license, notes)
    save_pretrained(folder, model, vocabulary, data, metadata, dtype, card, fingerprints)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode() + b"\n"
