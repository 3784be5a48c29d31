"""A saved model for others: `python scripts/export.py runs/a --to transformers --output exported`."""

import sys

from lstmlm.cli import export
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(export))
