"""Exact perplexity of a saved model: `python scripts/evaluate.py --model runs/a/model --split test`."""

import sys

from lstmlm.cli import evaluate
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(evaluate))
