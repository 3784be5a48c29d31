"""Scored texts as tables: the files that are read, the forms that rows are written in, and a page that shades each word.

A form is a context manager: it takes a file and gives a function that writes some rows into it.
"""

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from lstmlm.console import UsageError, UserError, check
from lstmlm.data.reading import lines_of, read_blocks
from lstmlm.data.tokenize import EOS
from lstmlm.evaluation.surprisal import Row, score_lines
from lstmlm.evaluation.text import Reset
from lstmlm.files import Output
from lstmlm.model.pretrained import SavedModel, load

Format = Literal["tsv", "jsonl", "parquet", "neural-complexity"]
Write = Callable[[Sequence[Row]], object]
SHADES, SHADE_BITS = 10, 2  # of the page: 0 to 2 bits, 2 to 4, ..., 18 and more


def score_files(
    files: Sequence[str],
    model: str | Path | SavedModel | None = None,
    reset: Reset = "line",
    eos: bool = False,
    form: Format = "tsv",
    output: str | Path | None = None,
    page: str | Path | None = None,
    column: str = "text",
    raw: bool = False,
) -> None:
    """Score texts, read one after the other as one, and write their rows.

    Args:
        files: As for `read_lines`. A document ends with its file at the latest.
        model: A model's folder or a run's; None = the newest `runs/*/model`, else the one that comes with this package.
        reset, eos: As for `score_text`.
        form: Of the rows.
        output: File that gets the rows when all are there; None = standard output, as they come.
        page: File that gets the text as an HTML page, each word shaded by its surprisal; None = no page.
        column: As for `read_lines`.
        raw: As for `score_text`.

    Raises:
        UsageError: A text cannot be read or has no token, or the arguments do not go together. What was there before stays.
    """
    check(form in FORMS, f"format must be one of {', '.join(FORMS)}, not {form!r}")
    check(form != "neural-complexity" or not eos, "neural-complexity's table has no rows for <eos>: leave --eos out")
    files = ["-" if name == "/dev/stdin" else name for name in files]
    kept: list[str | Path] = [name for name in files if name != "-"]
    if model is not None:
        kept.append(model.folder if isinstance(model, SavedModel) else model)
    table = Output("-" if output is None else output, kept)
    shaded = None if page is None else Output(page, [*kept, *([table.path] if table.plain else [])], "--html")
    check(form != "parquet" or not table.standard, "parquet is not for standard output: name a file with --output")
    check(not (shaded and shaded.standard and table.standard), "--html: standard output has the table: name a file")
    check(files.count("-") <= 1, "standard input can be read once only: name - once")
    for name in files:
        check(name == "-" or Path(name).exists(), f"cannot read {name}: there is no such file")
    saved = load(model, raw)
    by_character = saved.vocabulary.level == "char"
    check(
        form != "neural-complexity" or not by_character,
        "neural-complexity's table is of words, but this model's tokens are characters",
    )
    windows = filter(None, score_lines([_lines(name, column, reset) for name in files], saved, reset, eos))
    first = next(windows, None)
    if first is None:
        raise UsageError(f"there is no text to score in {', '.join(files)}")
    with ExitStack() as stack:
        writers = [stack.enter_context(FORMS[form](stack.enter_context(table.opened())))]
        if shaded:
            file = stack.enter_context(shaded.opened())
            writers.append(stack.enter_context(shaded_page(file, ", ".join(files), "" if by_character else " ")))
        for rows in chain([first], windows):
            for write in writers:
                write(rows)


def _lines(name: str, column: str, reset: Reset) -> Callable[[], Iterator[str]]:
    """The lines of a text, to be read more than once where documents must be told apart."""
    if name == "-" and reset == "document":
        held = list(read_lines(name, column))
        return lambda: iter(held)
    return lambda: read_lines(name, column)


def read_lines(name: str, column: str = "text") -> Iterator[str]:
    """Lines of a text, without their line ends.

    Args:
        name: A file that training reads too, by its ending, else a text in UTF-8; `-` is standard input.
        column: Where the text of a row stands, in a file that has rows.

    Raises:
        UsageError: It cannot be read, or is not UTF-8.
    """
    try:
        yield from lines_of(read_blocks(Path(name), column))
    except UserError as error:
        raise UsageError(str(error)) from None


@contextmanager
def tsv(file: BinaryIO) -> Iterator[Write]:
    """Tab-separated columns with their names above, quoted where a token needs it, as pandas and R read them."""

    def write(rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, "excel-tab", lineterminator="\n").writerows(rows)
        file.write(text.getvalue().encode())

    write([Row._fields])
    yield write


@contextmanager
def jsonl(file: BinaryIO) -> Iterator[Write]:
    """One JSON object a line."""
    yield lambda rows: file.writelines(f"{json.dumps(row._asdict(), ensure_ascii=False)}\n".encode() for row in rows)


@contextmanager
def parquet(file: BinaryIO) -> Iterator[Write]:
    """Parquet, a row group for each window of the text."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise UsageError("parquet needs pyarrow: pip install pyarrow, or choose another --format") from None
    types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in Row.__annotations__.items()])
    with ParquetWriter(file, schema) as writer:
        yield lambda rows: writer.write_table(pyarrow.table([*zip(*rows, strict=True)], schema=schema))


@contextmanager
def neural_complexity(file: BinaryIO) -> Iterator[Write]:
    """The table of neural-complexity: blanks between columns, sentences and places from 0; `entred` is by how much the entropy fell."""
    before = 0.0

    def write(rows: Sequence[Row]) -> None:
        nonlocal before
        for row in rows:
            fall = max(0.0, before - row.entropy) if row.token_id > 1 else 0.0
            before = row.entropy
            values = (
                row.token,
                row.sentence_id - 1,
                row.token_id - 1,
                len(row.token),
                row.surprisal,
                row.entropy,
                f"{fall:.7g}",
            )
            file.write(f"{' '.join(map(str, values))}\n".encode())

    file.write(b"word sentid sentpos wlen surp entropy entred\n")
    yield write


FORMS: dict[Format, Callable[[BinaryIO], AbstractContextManager[Write]]] = {
    "tsv": tsv,
    "jsonl": jsonl,
    "parquet": parquet,
    "neural-complexity": neural_complexity,
}

# Blues told apart by lightness alone, and the ink on each: from the page's own colour to the furthest from it.
LIGHT = dict.fromkeys("#ffffff #f0f6fc #deebf7 #c6dbef #9ecae1 #6baed6 #4b9aca".split(), "#111111")
LIGHT |= dict.fromkeys("#2171b5 #08519c #08306b".split(), "#ffffff")
DARK = dict.fromkeys("#11161d #11263f #103a68 #175294 #2b6cb0".split(), "#f2f5f8")
DARK |= dict.fromkeys("#5b96cc #75a9d6 #a0c6e6 #c8dff2 #f0f7fd".split(), "#11161d")
PAGE_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Surprisal of {title}</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --ink: #111111; --faint: #5a6572; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #11161d; --ink: #e8edf2; --faint: #9aa7b5; {dark} }} }}
body {{ margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 1.05rem/1.9 Georgia, "Times New Roman", serif; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
p {{ margin: 0 0 .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.legend, footer {{ font: .85rem/1.6 system-ui, sans-serif; color: var(--faint); white-space: normal; }}
.legend span {{ display: inline-block; min-width: 3.4em; padding: 0 .3em; text-align: center; border: 1px solid var(--faint); }}
i {{ font-style: normal; padding: .12em .1em; border-radius: .2em; }}
i.unk {{ text-decoration: underline dotted 2px; text-underline-offset: .25em; }}
{classes}
</style>
</head>
<body>
<h1>Surprisal of {title}</h1>
<p class="legend">Bits: {legend}<br>Dotted: not in the vocabulary, scored as &lt;unk&gt;. Point at a word for its figures.</p>
"""


@contextmanager
def shaded_page(file: BinaryIO, title: str, glue: str) -> Iterator[Write]:
    """The text as one HTML file that needs nothing else, each token shaded by its surprisal.

    Args:
        file: Gets the page.
        title: Its heading.
        glue: What stands between two tokens of a line.
    """
    sentence, tokens, bits = 0, 0, 0.0

    def write(rows: Sequence[Row]) -> None:
        nonlocal sentence, tokens, bits
        parts = []
        for row in rows:
            if row.sentence_id != sentence:
                parts.append(f"{'</p>' if sentence else ''}\n<p>")
            elif glue:
                parts.append(glue)
            sentence = row.sentence_id
            shade = min(int(row.surprisal / SHADE_BITS), SHADES - 1)
            figures = f"{row.surprisal:.2f} bits, rank {row.rank:,}, entropy {row.entropy:.2f} bits"
            parts.append(
                f'<i class="s{shade}{" unk" * row.unk}" title="{figures}">{html.escape("↵" if row.token == EOS else row.token)}</i>'
            )
        tokens += len(rows)
        bits += sum(row.surprisal for row in rows)
        file.write("".join(parts).encode())

    names = [f"{SHADE_BITS * i} to {SHADE_BITS * (i + 1)}" for i in range(SHADES - 1)] + [
        f"{SHADE_BITS * (SHADES - 1)}+"
    ]
    file.write(
        PAGE_HEAD.format(
            title=html.escape(title),
            light=_variables(LIGHT),
            dark=_variables(DARK),
            classes="\n".join(f".s{i} {{ background: var(--s{i}); color: var(--t{i}); }}" for i in range(SHADES)),
            legend="".join(f'<span class="s{i}">{name}</span>' for i, name in enumerate(names)),
        ).encode()
    )
    yield write
    file.write(f"</p>\n<footer>{tokens:,} tokens, {bits / tokens:.3f} bits each.</footer>\n</body>\n</html>\n".encode())


def _variables(shades: dict[str, str]) -> str:
    return " ".join(f"--s{i}: {colour}; --t{i}: {ink};" for i, (colour, ink) in enumerate(shades.items()))
