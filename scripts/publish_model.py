"""Make a folder of models/ from a run on WikiText-2: `python scripts/publish_model.py runs/a --name wikitext2-a`."""

import dataclasses
import sys
from pathlib import Path

import safetensors
import torch

from lstmlm.config import argument_parser, parse
from lstmlm.console import check, print_line, print_result, run_script
from lstmlm.data.corpus import fingerprint
from lstmlm.data.sources import SPLITS
from lstmlm.evaluation.evaluate import evaluate
from lstmlm.evaluation.text import split_text
from lstmlm.model.pretrained import WEIGHTS, load, model_card, save_pretrained, trained_on
from lstmlm.runtime import hardware

MODELS = Path(__file__).parents[1] / "models"
TOLERANCE = 0.01  # test perplexity that rounded weights may cost
NOTES = """\
## Data and licence

WikiText-2 (Merity et al., 2016, "Pointer Sentinel Mixture Models"): 2.1 million tokens of good and featured articles
of the English Wikipedia, cut at white space, rare words as `<unk>`.
Its text is licensed under CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/).
The vocabulary is that of the text, so this model is given under the same licence; the code of lstmlm is under Apache-2.0.

## Limits

This is a small baseline to compare with and to learn from, not a writer.
It knows 33,278 words, in the spelling of WikiText: `@-@` for a hyphen within a word, `@,@` in numbers, a space before punctuation.
Every other word is `<unk>` to it.
It repeats what Wikipedia said about people and places in 2016, true or not.
Figures hold for WikiText-2 alone, and compare only with figures over the same 33,278 types and the same protocol.
"""


def publish_model(run: str | Path, folder: Path, place: str | None = None) -> None:
    """Write a model to give away: weights in 16 bits where that moves the test perplexity by less than TOLERANCE, else in 32."""
    saved = load(run, dataset=place)
    with safetensors.safe_open(saved.folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    data = trained_on(dataclasses.replace(saved.data, dataset="Salesforce/wikitext"))
    fingerprints = {split: fingerprint(split_text(saved, split).stream) for split in SPLITS}
    exact = evaluate(saved, "test").ppl
    for dtype in (torch.float16, torch.float32):
        save_pretrained(folder, saved.model, saved.vocabulary, data, metadata, dtype, fingerprints=fingerprints)
        written = load(folder, dataset=saved.data.dataset)
        results = {split: evaluate(written, split) for split in ("validation", "test")}
        print_line(f"{dtype}: test perplexity {results['test'].ppl:.4f}, of the run's own weights {exact:.4f}")
        if abs(results["test"].ppl - exact) < TOLERANCE:
            break
    figures = {split: result.figures() for split, result in results.items()}
    card = model_card(saved.model, saved.vocabulary, data, figures, folder.name, "cc-by-sa-3.0", NOTES)
    save_pretrained(folder, saved.model, saved.vocabulary, data, metadata, dtype, card, fingerprints)


def main() -> int:
    parser = argument_parser("Make a folder of models/ from a run on WikiText-2, its weights in 16 bits where that costs nothing.")
    parser.add_argument("run", type=str, help="Directory of the run, finished or not.")
    parser.add_argument("--name", type=str, required=True, help="Folder below models/.")
    parser.add_argument("--dataset", type=str | None, default=None, help="Where the data is now, if it was moved.")
    args = parse(parser)
    hardware.use_machine()
    folder = MODELS / args.name
    check(folder.resolve().parent == MODELS.resolve(), f"--name {args.name} is no folder below models/: name another one")
    publish_model(args.run, folder, args.dataset)
    print_result(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
