"""Train a language model: `accelerate launch scripts/train.py [--config FILE] [--section.key VALUE ...]`."""

import sys

from lstmlm.cli import train
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(train))
