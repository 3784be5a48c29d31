"""Train a language model: `accelerate launch scripts/train.py [--config FILE] [--section.key VALUE ...]`."""

from lstmlm.cli import main, train

if __name__ == "__main__":
    main(train)
