"""Make the token ids that training needs: `python scripts/prepare.py --config configs/smoke.yaml`."""

import sys

from lstmlm.cli import prepare
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(prepare))
