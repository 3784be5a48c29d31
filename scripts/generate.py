"""Sample text: `python scripts/generate.py --model runs/a/model --prompt "Once upon a time" --temperature 0.8`."""

from lstmlm.cli import generate, main

if __name__ == "__main__":
    main(generate)
