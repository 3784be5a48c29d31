"""A scored text as one HTML file that needs nothing else: each word shaded by its surprisal, several models side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lstmlm.console import UserError
from lstmlm.evaluation.surprisal import By, Pieces, Sentence
from lstmlm.evaluation.words import graphemes

TEMPLATE = Path(__file__).with_name("surprisal.html.jinja")
SHADES, SHADE_BITS = 10, 2  # 0 to 2 bits, 2 to 4, ..., 18 and more
# Blues told apart by lightness alone, and the ink on each: from the page's own colour to the furthest from it.
LIGHT = dict.fromkeys("#ffffff #f0f6fc #deebf7 #c6dbef #9ecae1 #6baed6 #4b9aca".split(), "#111111")
LIGHT |= dict.fromkeys("#2171b5 #08519c #08306b".split(), "#ffffff")
DARK = dict.fromkeys("#11161d #11263f #103a68 #175294 #2b6cb0".split(), "#f2f5f8")
DARK |= dict.fromkeys("#5b96cc #75a9d6 #a0c6e6 #c8dff2 #f0f7fd".split(), "#11161d")


class Shaded(NamedTuple):
    """An element of the page."""

    text: str
    bits: float
    unk: int
    entropy: float | None
    shade: int


def elements(sentence: Sentence, pieces: Pieces, by: By) -> list[Shaded]:
    """What the page shows of a sentence: regions, words, or of a text by characters what a reader takes for one."""
    if by == "token":
        units = pieces.units("token")
        numbers = graphemes([unit.text for unit in units])
        groups = [[unit for unit, number in zip(units, numbers, strict=True) if number == n] for n in dict.fromkeys(numbers)]
    else:
        groups = [[unit] for unit in pieces.units(by, sentence.regions)]
    shown = []
    for group in groups:
        bits = sum(unit.measures[0] for unit in group)
        unk, entropy = max(unit.measures[1] for unit in group), group[0].measures[2]
        shown.append(Shaded("".join(u.text for u in group), bits, unk, entropy, min(int(bits / SHADE_BITS), SHADES - 1)))
    return shown


@contextmanager
def shaded_page(
    file: BinaryIO, title: str, models: Sequence[str], by: By
) -> Iterator[Callable[[Sequence[tuple[Sentence, list[Pieces]]]], object]]:
    """Write the page into a file.

    Args:
        file: Gets it.
        title: Its heading.
        models: Their names.
        by: What is an element: `token` means characters.

    Yields:
        To be called with sentences and what each model says of them.

    Raises:
        UserError: The library of templates is missing.
    """
    if find_spec("jinja2") is None:
        raise UserError("--html needs jinja2: pip install 'lstmlm[report]'")
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text()).module
    sums = [[0, 0.0] for _ in models]

    def write(window: Sequence[tuple[Sentence, list[Pieces]]]) -> None:
        sentences = [[elements(sentence, each, by) for each in pieces] for sentence, pieces in window if pieces[0].texts]
        for shown in sentences:
            for total, own in zip(sums, shown, strict=True):
                total[0] += len(own)
                total[1] += sum(element.bits for element in own)
        glue = "" if by == "token" else " "
        file.write(template.sentences([each for each in sentences if each[0]], models, glue).encode())  # type: ignore[attr-defined]

    tops = [f"{SHADE_BITS * i} to {SHADE_BITS * (i + 1)}" for i in range(SHADES - 1)]
    legend = [*tops, f"{SHADE_BITS * (SHADES - 1)}+"]
    file.write(template.head(title, legend, list(LIGHT.items()), list(DARK.items()), len(models)).encode())  # type: ignore[attr-defined]
    yield write
    file.write(template.foot(models, sums, by).encode())  # type: ignore[attr-defined]
