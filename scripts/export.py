"""A saved model for others: `python scripts/export.py runs/a --to transformers --output exported`."""

from lstmlm.cli import export, main

if __name__ == "__main__":
    main(export)
