"""A model trained with other code: `python scripts/import.py model.pt --vocab data/penn --output imported`."""

import sys

from lstmlm.cli import import_model
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(import_model))
