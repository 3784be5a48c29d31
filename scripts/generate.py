"""Sample text: `python scripts/generate.py --model runs/a/model --prompt "Once upon a time" --temperature 0.8`."""

import sys

from lstmlm import generate_texts
from lstmlm.config import argument_parser, parse, run_script


def main() -> int:
    parser = argument_parser("Sample text from a saved model.")
    parser.add_argument(
        "--model", type=str | None, default=None, help="Folder that training exported; null = the newest runs/*/model."
    )
    parser.add_argument("--prompt", type=str, default="", help="Text to go on from; empty = the beginning of a line.")
    parser.add_argument("--max_len", type=int, default=30, help="Most new tokens.")
    parser.add_argument("--temperature", type=float, default=1.0, help="Divides the logits; 0 = the most likely token.")
    parser.add_argument("--top_k", type=int | None, default=None, help="Sample among the k most likely tokens.")
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="Sample among the fewest tokens that reach this probability."
    )
    parser.add_argument("--seed", type=int | None, default=None, help="Same seed, same text.")
    parser.add_argument("--count", type=int, default=1, help="Texts to sample, one a line.")
    parser.add_argument("--allow_unk", action="store_true", help="Let <unk> be sampled.")
    args = parse(parser)
    for text in generate_texts(**vars(args)):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
