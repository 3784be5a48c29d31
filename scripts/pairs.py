"""Accuracy on minimal pairs: `python scripts/pairs.py blimp.jsonl --model runs/a`."""

import sys

from lstmlm.cli import pairs
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(pairs))
