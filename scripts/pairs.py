"""Accuracy on minimal pairs: `python scripts/pairs.py blimp.jsonl --model runs/a`."""

from lstmlm.cli import main, pairs

if __name__ == "__main__":
    main(pairs)
