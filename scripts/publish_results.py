"""Write the record of a run into results/: `python scripts/publish_results.py runs/a --name wikitext2-reference`."""

import sys
from pathlib import Path

from publishing import publish_results

from lstmlm.config import argument_parser, parse
from lstmlm.console import run_script

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    parser = argument_parser("Write the record of a run, finished or not, into results/.")
    parser.add_argument("run", type=str, help="Directory of the run; start this on the machine that it ran on.")
    parser.add_argument("--name", type=str, required=True, help="Folder below results/.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Public name of the data, owner/name.")
    args = parse(parser, None)
    publish_results(args.run, RESULTS / args.name, args.dataset)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
