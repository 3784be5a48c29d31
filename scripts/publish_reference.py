"""Make models/wikitext2-reference from a run: `python scripts/publish_reference.py runs/reference`."""

import sys
from pathlib import Path

from publishing import publish_model

from lstmlm.config import argument_parser, parse
from lstmlm.console import run_script
from lstmlm.runtime import hardware

FOLDER = Path(__file__).parents[1] / "models" / "wikitext2-reference"
NOTES = """\
## Data and licence

WikiText-2 (Merity et al., 2016, "Pointer Sentinel Mixture Models"): 2.1 million tokens of good and featured articles
of the English Wikipedia, cut at white space, rare words as `<unk>`.
Its text is licensed under CC BY-SA 3.0.
The vocabulary is that of the text, so this model is given under the same licence; the code of lstmlm is under Apache-2.0.

## Limits

This is a small baseline to compare with and to learn from, not a writer.
It knows 33,278 words, in the spelling of WikiText: `@-@` for a hyphen within a word, `@,@` in numbers, a space before punctuation.
Every other word is `<unk>` to it.
It repeats what Wikipedia said about people and places in 2016, true or not.
Figures hold for WikiText-2 alone, and compare only with figures over the same 33,278 types and the same protocol.
"""


def main() -> int:
    parser = argument_parser("Make models/wikitext2-reference from a run on WikiText-2, its weights in 16 bits where that costs nothing.")
    parser.add_argument("run", type=str, help="Directory of the run, finished or not.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    args = parse(parser, None)
    hardware.use_machine()
    name = "wikitext2-reference"
    publish_model(args.run, FOLDER, "Salesforce/wikitext", args.dataset, name, "cc-by-sa-3.0", NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
