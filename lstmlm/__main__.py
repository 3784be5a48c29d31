"""`python -m lstmlm`: as `lstmlm`."""

from lstmlm.cli import main

if __name__ == "__main__":
    main()
