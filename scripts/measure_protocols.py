"""Measure a model under every protocol: `python scripts/measure_protocols.py --model runs/a --output results/NAME/evaluations`.

Static at 1 and 10 columns; then cache, dynamic evaluation and both at 1 column, each with settings searched on validation. The search
of both begins where the other two ended. Each command is a process of its own. A result is a file, `PROTOCOL-SPLIT.json`, as
`evaluate --json` prints it, and a line. A file that is there already is not measured again, so the same command goes on where a stop
ended it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lstmlm.config import argument_parser, parse
from lstmlm.console import UserError, print_line, print_result, run_script
from lstmlm.files import OutputFolder

EVALUATE = Path(__file__).parent / "evaluate.py"


def main() -> int:
    parser = argument_parser("Measure a model under every protocol, on validation and test: a JSON file for each result.")
    parser.add_argument("--model", type=str, required=True, help="A model's folder or a run's.")
    parser.add_argument("--output", type=str, required=True, help="Folder for the files; what is in it is not measured again.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="Where token ids are kept.")
    parser.add_argument("--evaluations", type=int, default=30, help="The most evaluations of each search.")
    args = parse(parser)
    common = [sys.executable, str(EVALUATE), "--model", args.model, "--json"]
    for name in ("dataset", "cache_dir"):
        common += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    output = OutputFolder(args.output)

    def measured(name: str, split: str, *options: str) -> dict[str, Any]:
        """The result in a file, which is made where there is none."""
        path = output.path / f"{name}-{split}.json"
        if path.exists():
            print_line(f"{path} is there already: delete it to measure anew")
        else:
            process = subprocess.run([*common, *options], stdout=subprocess.PIPE, text=True)
            if process.returncode:
                raise UserError(f"evaluate {' '.join(options)} failed: its own line says why")
            result = json.loads(process.stdout)
            others = [{**result.pop("validation"), "tuning": result["tuning"]}] if "validation" in result else []
            for each in (*others, result):
                file = f"{name}-{each['split']}.json"
                output.write({file: f"{json.dumps(each)}\n".encode()})
                told = f"ppl {each['ppl']:.2f}, bpc {each['bpc']:.4f}, {each['seconds']} s, {each['settings']}"
                print_result(f"{output.path / file}: {told}")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    for columns in ("1", "10"):
        for split in ("validation", "test"):
            measured(f"static-{columns}", split, "--columns", columns, "--split", split)
    start: list[str] = []  # of the last search: what the others found
    for protocol in ("cache", "dynamic", "cache+dynamic"):
        search = ["--protocol", protocol, "--tune", "--evaluations", str(args.evaluations)]
        result = measured(protocol, "test", *search, *(start if protocol == "cache+dynamic" else []))
        start += [word for name, value in result["settings"].items() for word in (f"--{name}", str(value))]
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
