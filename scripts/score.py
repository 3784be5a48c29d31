"""Score a text: `python scripts/score.py sentences.txt --model runs/a > surprisal.tsv`."""

import sys

from lstmlm.cli import score
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(score))
