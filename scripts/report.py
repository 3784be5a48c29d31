"""Report on runs as one HTML file: `python scripts/report.py runs/*`."""

import sys

from lstmlm.cli import report
from lstmlm.console import run_script

if __name__ == "__main__":
    sys.exit(run_script(report))
