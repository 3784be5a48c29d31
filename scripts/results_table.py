"""Write the table of results/ into README.md: `python scripts/results_table.py`."""

import sys
from pathlib import Path

from publishing import results_table, with_table

from lstmlm.config import argument_parser, parse
from lstmlm.console import run_script
from lstmlm.files import replace_file

ROOT = Path(__file__).parents[1]


def main() -> int:
    parse(argument_parser("Write the table of results/ into README.md, between its markers."), None)
    readme = ROOT / "README.md"
    replace_file(readme, with_table(readme.read_text(), results_table(ROOT / "results")).encode())
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
