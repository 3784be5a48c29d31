"""Score a text: `python scripts/score.py sentences.txt --model runs/a > surprisal.tsv`."""

from lstmlm.cli import main, score

if __name__ == "__main__":
    main(score)
