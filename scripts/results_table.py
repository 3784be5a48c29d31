"""Write the table of results/ into README.md: `python scripts/results_table.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from lstmlm.config import argument_parser, parse
from lstmlm.console import UserError, run_script
from lstmlm.evaluation.evaluate import PROTOCOLS
from lstmlm.files import replace_file
from lstmlm.records import read_json_lines

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: made by scripts/results_table.py -->", "<!-- end of results -->"
HEADS = ["run", "parameters", *PROTOCOLS, "minutes of training"]


def results_table(results: Path) -> str:
    """All records below a folder but those of the toy language, in Markdown: a row for each run, a column for each protocol; then the
    command of each."""
    paths = [path for path in sorted(results.glob("*/run.json")) if not path.parent.name.startswith("toy")]
    records = {path.parent: json.loads(path.read_bytes()) for path in paths}
    rows = [HEADS, ["---"] * len(HEADS), *(row(folder, record) for folder, record in records.items())]
    words = (
        "Perplexity on validation / test, read from the first word to the last, the state carried all the way. Lower is better:\n"
        "a model with perplexity 100 is as unsure of the next word as if it had to choose among 100 equally likely ones."
    )
    commands = [line for folder, record in records.items() for line in (f"    # {folder.name}", f"    {record['command']}")]
    return "\n".join([words, "", *(f"| {' | '.join(cells)} |" for cells in rows), "", *commands])


def row(folder: Path, record: dict[str, Any]) -> list[str]:
    """Cells of a run, finished or not."""
    config = yaml.safe_load((folder / "config.yaml").read_bytes())
    name, train = f"[{folder.name}](results/{folder.name})", config["train"]
    results = [json.loads(path.read_bytes()) for path in sorted(folder.glob("evaluations/*.json"))]
    figures = {
        (result["protocol"], result["split"]): result["ppl"]
        for result in results
        if result["columns"] == 1 and result.get("reset", "never") == "never"  # what papers' figures compare with
    }
    finished, ranks = (folder / "summary.json").exists(), 1
    if finished:
        summary = json.loads((folder / "summary.json").read_bytes())
        ranks = summary["ranks"]
        figures |= {("static", "validation"): summary["valid"]["ppl"], ("static", "test"): summary["test"]["ppl"]}
    cells = {protocol: cell(figures.get((protocol, "validation")), figures.get((protocol, "test"))) for protocol in PROTOCOLS}
    if not finished:
        lines = read_json_lines(folder / "metrics.jsonl")
        name += f" (in epoch {lines[-1]['epoch']} of {train['epochs']})"
        measured = [line["valid/ppl"] for line in lines if line.get("valid/ppl")]
        if measured and not cells["static"]:
            cells["static"] = f"{min(measured):.2f} / - ({train['eval_columns']} columns)"
    threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)} of {record['processor'].replace('(R)', '')}"
    machine = f"{ranks} x " * (ranks > 1) + (record["gpu"] or threads)
    minutes = f"{record['training_seconds'] / 60:,.0f} ({machine}, {train['precision']})"
    return [name, f"{record['parameters']:,}", *cells.values(), minutes]


def cell(*ppls: float | None) -> str:
    """Perplexities of a protocol; empty where it was not measured."""
    return " / ".join("-" if ppl is None else f"{ppl:.2f}" for ppl in ppls) if any(ppls) else ""


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


def main() -> int:
    parse(argument_parser("Write the table of results/ into README.md, between its markers."))
    readme = ROOT / "README.md"
    replace_file(readme, with_table(readme.read_text(), results_table(ROOT / "results")).encode())
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
