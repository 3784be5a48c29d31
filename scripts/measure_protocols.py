"""Measure a model under every protocol: `python scripts/measure_protocols.py --model runs/a --output results/NAME/evaluations`.

Static at 1 and 10 columns; then cache, dynamic evaluation and both at 1 column, each with settings searched on validation. The search
of both begins where the other two ended. Each command is a process of its own. A result is a file, `PROTOCOL-SPLIT.json`, as
`evaluate --json` prints it, and a line.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lstmlm.config import argument_parser, parse
from lstmlm.console import UserError, run_script
from lstmlm.files import OutputFolder

EVALUATE = Path(__file__).parent / "evaluate.py"


def main() -> int:
    parser = argument_parser("Measure a model under every protocol, on validation and test: a JSON file for each result.")
    parser.add_argument("--model", type=str, required=True, help="A model's folder or a run's.")
    parser.add_argument("--output", type=str, required=True, help="Folder for the files.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="Where token ids are kept.")
    parser.add_argument("--evaluations", type=int, default=30, help="The most evaluations of each search.")
    args = parse(parser)
    common = [sys.executable, str(EVALUATE), "--model", args.model, "--json"]
    for name in ("dataset", "cache_dir"):
        common += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    output = OutputFolder(args.output)

    def evaluate(*options: str) -> dict[str, Any]:
        process = subprocess.run([*common, *options], stdout=subprocess.PIPE, text=True)
        if process.returncode:
            raise UserError(f"evaluate {' '.join(options)} failed: its own line says why")
        result: dict[str, Any] = json.loads(process.stdout)
        return result

    def keep(name: str, result: dict[str, Any]) -> None:
        file = f"{name}-{result['split']}.json"
        output.write({file: f"{json.dumps(result)}\n".encode()})
        print(f"{output.path / file}: ppl {result['ppl']:.2f}, bpc {result['bpc']:.4f}, {result['seconds']} s, {result['settings']}")

    for columns in ("1", "10"):
        for split in ("validation", "test"):
            keep(f"static-{columns}", evaluate("--columns", columns, "--split", split))
    search = ["--tune", "--evaluations", str(args.evaluations)]
    found: list[str] = []
    for protocol in ("cache", "dynamic", "cache+dynamic"):
        start = found if protocol == "cache+dynamic" else []
        result = evaluate("--protocol", protocol, *search, *start)
        found += [word for name, value in result["settings"].items() for word in (f"--{name}", str(value))]
        for each in (result.pop("validation"), result):
            keep(protocol, {**each, "tuning": result["tuning"]})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
