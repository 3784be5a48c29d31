"""`python -m lstmlm`: as `lstmlm`."""

import sys

from lstmlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
