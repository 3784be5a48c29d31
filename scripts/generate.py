"""Sample text: `python scripts/generate.py --model runs/a/model --prompt "Once upon a time" --temperature 0.8`."""

import sys

from lstmlm.cli import generate
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(generate))
