"""Exact perplexity of a saved model: `python scripts/evaluate.py --model runs/a/model --split test`."""

from lstmlm.cli import evaluate, main

if __name__ == "__main__":
    main(evaluate)
