"""The page: one HTML file that needs no network and no script, from the rows and curves of runs."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from lstmlm.config import as_written
from lstmlm.console import duration, need
from lstmlm.files import Output, OutputFolder
from lstmlm.report import plots
from lstmlm.report.runs import ELSEWHERE, Figures, Row, Summary, differences, read_rows

TEMPLATE = Path(__file__).parent / "page.html.jinja"
# Keys that say which text is cut into which tokens; a run has the vocabulary of the model that it begins with. Only perplexities over
# the same tokens compare.
TOKENS = """
    data.dataset data.subset data.text_column data.level data.tokenizer data.lowercase data.normalize data.min_count data.max_size
    train.init_from
""".split()


def write_report(run_dirs: Sequence[str | Path], output: Output, png: str | Path | None = None) -> None:
    """Write the page about run directories, finished or not; a broken or foreign one is named in a warning and left out.

    `png` is a folder for the plots as PNG too, made where it does not exist.

    Raises:
        UserError: No run among them, what draws is not installed, or a file cannot be written.
    """
    need("a report", "report", "matplotlib", "jinja2")
    import jinja2

    folder = None if png is None else OutputFolder(png, option="--png")
    rows = read_rows(run_dirs)
    images: dict[str, Output] = {}
    if folder is not None:
        folder.write({})  # makes it
        images = {plot.name: Output(folder.path / f"{plot.name}.png", option="--png") for plot in plots.PLOTS}
    drawn = [(plot, figure) for plot in plots.PLOTS if (figure := plots.draw(plot, rows)) is not None]
    differing = differences(rows)
    results = [_result(row) for row in rows]
    for name in ("best", "valid", "test"):
        _mark_lowest([(result["tokens_of"], result[name]) for result in results if result[name]])
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(written=as_written, perplexity=_perplexity)
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=f"Run {rows[0].name}" if len(rows) == 1 else f"{len(rows)} runs",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        rows=rows,
        results=results,
        records=[record for row in rows for record in row.records],
        places={record.name: place for place, row in enumerate(rows) for record in row.records},
        differing=differing,
        shared={key: rows[0].config(key) for key in rows[0].records[0].config if key not in differing and not key.startswith(ELSEWHERE)},
        figures=[(plot.name, f"{plot.title}, over {plot.over}", plots.svg(figure, plot.name)) for plot, figure in drawn],
        style=plots,
    )
    output.write(page.encode())
    for plot, figure in drawn if images else ():
        images[plot.name].write(plots.png(figure))


def _result(row: Row) -> dict[str, Any]:
    """A row of the table of results."""
    records, finished = row.records, [record.summary for record in row.records if record.summary is not None]
    best = [(*record.best, record.config["train.eval_columns"]) for record in records if record.best is not None]
    epochs = dict.fromkeys(str(epoch) for epoch, _, _ in best)
    last = [record.lines[-1] for record in records if record.lines]
    seconds = [line["seconds"] for line in last if "seconds" in line]
    speeds = [[rate for _, rate in record.points("train/tokens_per_second", "tokens").values()] for record in records]
    rates = [median(speed) for speed in speeds if speed]
    return {
        "state": _state(row, finished),
        "tokens_of": [row.config(key) for key in TOKENS],
        "best": _perplexity([Figures(ppl, columns) for _, ppl, columns in best], f"epoch {', '.join(epochs)}"),
        "valid": _perplexity([summary.valid for summary in finished]),
        "test": _perplexity([summary.test for summary in finished]),
        "tokens": f"{fmean(line['tokens'] for line in last):,.0f}" if last else "0",
        "time": duration(fmean(seconds)) if seconds else "-",
        "rate": f"{fmean(rates):,.0f}" if rates else "-",
    }


def _state(row: Row, finished: Sequence[Summary]) -> str:
    """How far the runs are, how large the model is, and where it was trained."""
    first = row.records[0]
    if len(row.records) > 1:
        states = [f"{len(finished)} finished of {', '.join(record.name for record in row.records)}"]
    elif finished:
        states = ["finished"]
    else:
        epoch = first.lines[-1]["epoch"] if first.lines else 0
        states = [f"not finished, epoch {epoch} of {first.config['train.epochs']}"]
    for summary in finished[:1]:
        states += [f"{summary.parameters:,} parameters", f"{summary.ranks} rank{'s' * (summary.ranks > 1)} on {summary.device}"]
    return ", ".join([*states, first.config["train.precision"]])


def _perplexity(figures: Sequence[Figures], where: str | None = None) -> dict[str, Any] | None:
    """A cell: the mean over seeds and its standard deviation, and how it was obtained; null stands for what is not finite."""
    if not figures:
        return None
    ppls = [math.inf if one.ppl is None else one.ppl for one in figures]
    bpcs = [one.bpc for one in figures if one.bpc is not None]
    deviation = f" ± {stdev(ppls):.2f}" if len(ppls) > 1 and all(map(math.isfinite, ppls)) else ""
    return {
        "ppl": fmean(ppls),
        "targets": figures[0].targets,
        "shown": f"{fmean(ppls):,.2f}{deviation}",
        "bpc": f"{fmean(bpcs):.3f} bits per character" if bpcs else None,
        "how": f"{where or figures[0].protocol}, {figures[0].columns} column{'s' * (figures[0].columns > 1)}",
    }


def _mark_lowest(cells: Sequence[tuple[list[Any], dict[str, Any]]]) -> None:
    """Mark the lowest perplexity among those over the same tokens, where there is more than one."""
    for tokens, cell in cells:
        rivals = [other["ppl"] for of, other in cells if (of, other["targets"]) == (tokens, cell["targets"])]
        cell["lowest"] = len(rivals) > 1 and cell["ppl"] == min(rivals)
