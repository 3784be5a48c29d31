"""A scored text as one HTML file that needs nothing else: each word shaded by its surprisal, several models side by side."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lstmlm.console import need
from lstmlm.evaluation.surprisal import By, Pieces, Sentence, Window

TEMPLATE = Path(__file__).with_name("surprisal.html.jinja")
SHADES, SHADE_BITS = 10, 2  # 0 to 2 bits, 2 to 4, ..., 18 and more
# Blues told apart by lightness alone, and the ink on each: from the page's own colour to the furthest from it.
LIGHT = dict.fromkeys("#ffffff #f0f6fc #deebf7 #c6dbef #9ecae1 #6baed6 #4b9aca".split(), "#111111")
LIGHT |= dict.fromkeys("#2171b5 #08519c #08306b".split(), "#ffffff")
DARK = dict.fromkeys("#11161d #11263f #103a68 #175294 #2b6cb0".split(), "#f2f5f8")
DARK |= dict.fromkeys("#5b96cc #75a9d6 #a0c6e6 #c8dff2 #f0f7fd".split(), "#11161d")


def elements(sentence: Sentence, pieces: Pieces, by: By) -> list[dict[str, Any]]:
    """What the page shows of a sentence: regions, words, or of a text by characters what a reader takes for one (Unicode's UAX 29)."""
    units = [unit for unit in pieces.units(by, sentence.regions) if unit["pieces"]]
    groups = [[unit] for unit in units]
    if by == "token":
        import regex

        seen = regex.finditer(r"\X", "".join(unit["token"] for unit in units))
        groups = [units[each.start() : each.end()] for each in seen]
    shown = []
    for group in groups:
        bits = sum(unit["surprisal"] for unit in group)
        shown.append(
            {
                "text": "".join(unit[by] for unit in group),
                "bits": bits,
                "unk": any(unit["unk"] for unit in group),
                "entropy": group[0]["entropy"],
                "shade": min(int(bits / SHADE_BITS), SHADES - 1),
            }
        )
    return shown


def shaded_page(file: BinaryIO, windows: Iterable[Window], title: str, models: Sequence[str], by: By) -> Iterator[Window]:
    """The windows of a text as they come, each written into the page on its way. Elements are as in `elements`; `models` are names."""
    need("--html", "report", "jinja2", "regex")
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template: Any = environment.from_string(TEMPLATE.read_text()).module
    tops = [f"{SHADE_BITS * i} to {SHADE_BITS * (i + 1)}" for i in range(SHADES - 1)]
    legend = [*tops, f"{SHADE_BITS * (SHADES - 1)}+"]
    file.write(template.head(title, legend, list(LIGHT.items()), list(DARK.items()), len(models)).encode())
    sums = [[0, 0.0] for _ in models]
    for window in windows:
        sentences = [[elements(sentence, each, by) for each in pieces] for sentence, pieces in window]
        for shown in sentences:
            for total, own in zip(sums, shown, strict=True):
                total[0] += len(own)
                total[1] += sum(element["bits"] for element in own)
        glue = "" if by == "token" else " "
        file.write(template.sentences([shown for shown in sentences if shown[0]], models, glue).encode())
        yield window
    file.write(template.foot(models, sums, by).encode())
