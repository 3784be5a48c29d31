"""Train a language model: `accelerate launch scripts/train.py [--config FILE] [--section.key VALUE ...]`."""

import sys

from lstmlm import load_config, train
from lstmlm.config import run_script


def main() -> int:
    outcome = train(load_config())
    return 128 + outcome.signal if outcome.signal else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
