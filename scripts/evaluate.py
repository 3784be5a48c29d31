"""Exact perplexity of a saved model: `python scripts/evaluate.py --model runs/a/model --split test`."""

import json
import sys
from dataclasses import asdict

from lstmlm import evaluate
from lstmlm.config import argument_parser, parse, run_script


def main() -> int:
    parser = argument_parser("Exact perplexity of a saved model.")
    parser.add_argument("--model", type=str, required=True, help="Folder that training exported, runs/.../model.")
    parser.add_argument("--split", type=str, default="test", help="train, validation or test.")
    parser.add_argument("--columns", type=int, default=1, help="Columns of the table; 1 is the reference.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="Where token ids are kept.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parse(parser)
    result = evaluate(args.model, args.split, args.columns, args.dataset, args.cache_dir)
    if args.json:
        print(json.dumps({"split": args.split, **asdict(result), "loss": result.loss, "ppl": result.ppl}))
    else:
        print(
            f"{args.split}: {result.tokens:,} tokens, {result.targets:,} targets, nll {result.nll:.2f}, "
            f"ppl {result.ppl:.4f}, {result.columns} column{'s' * (result.columns > 1)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
