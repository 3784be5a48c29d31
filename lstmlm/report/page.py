"""The page: one HTML file that needs no network and no script, from the rows and curves of runs."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lstmlm.console import UserError
from lstmlm.files import replace_file
from lstmlm.report import plots
from lstmlm.report.runs import ELSEWHERE, RunRecord, differences, read_runs

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def write_report(run_dirs: Sequence[str | Path], out: str | Path, png: str | Path | None = None) -> None:
    """Write the page about some runs.

    Args:
        run_dirs: Run directories, finished or not; a broken or foreign one is named in a warning and left out.
        out: The HTML file.
        png: Folder for the plots as PNG too; made where it does not exist.

    Raises:
        UserError: No run among them, or what draws is not installed.
        OSError: A file cannot be written.
    """
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'lstmlm[report]'")
    records = read_runs(run_dirs)
    drawn = [(plot, figure) for plot in plots.PLOTS if (figure := plots.draw(plot, records)) is not None]
    replace_file(Path(out), render(records, [(plot, plots.svg(figure, plot.name)) for plot, figure in drawn]).encode())
    if png is not None:
        Path(png).mkdir(parents=True, exist_ok=True)
        for plot, figure in drawn:
            replace_file(Path(png) / f"{plot.name}.png", plots.png(figure))


def render(records: Sequence[RunRecord], figures: Sequence[tuple[plots.Plot, str]]) -> str:
    """The page.

    Args:
        records: Runs, in the order of the page.
        figures: Plots of them, as SVG.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    environment.globals |= {"colour": plots.colour, "dashes": plots.dashes}
    rows = [_row(record) for record in records]
    differing = differences(records)
    shared = {
        key: value for key, value in records[0].config.items() if key not in differing and not key.startswith(ELSEWHERE)
    }
    return environment.from_string(TEMPLATE.read_text()).render(
        title=f"Run {records[0].name}" if len(records) == 1 else f"{len(records)} runs",
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        rows=rows,
        lowest={
            name: min((row[name]["ppl"] for row in rows if row[name]), default=None)
            for name in ("best", "valid", "test")
        },
        differing=differing,
        shared=shared,
        figures=[(plot.name, f"{plot.title}, over {plot.over}", figure) for plot, figure in figures],
        ink=plots.INK,
        muted=plots.MUTED,
        grid=plots.GRID,
        dark=plots.DARK,
    )


def _row(record: RunRecord) -> dict[str, Any]:
    """A run's line in the table of results."""
    last = record.lines[-1] if record.lines else {}
    summary = record.summary or {}
    facts = []
    if record.summary is not None:
        facts.append(f"{summary['parameters']:,} parameters")
        facts.append(f"{summary['ranks']} rank{'s' * (summary['ranks'] > 1)} on {summary['device']}")
    stands = f"epoch {last.get('epoch', 0)} of {record.config['train.epochs']}"
    state = "finished" if record.summary is not None else f"not finished, {stands}"
    seconds = last.get("seconds", math.nan)
    best = record.best
    return {
        "record": record,
        "state": ", ".join([state, *facts, record.config["train.precision"]]),
        "best": best
        and {
            "ppl": best["valid/ppl"],
            "how": f"epoch {best.get('epoch', '?')}, {_columns(record.config['train.eval_columns'])}",
        },
        "valid": _final(summary.get("valid")),
        "test": _final(summary.get("test")),
        "tokens": last.get("tokens", 0),
        "time": duration(seconds) if math.isfinite(seconds) else None,
    }


def _final(figures: dict[str, Any] | None) -> dict[str, Any] | None:
    """A final perplexity and how it was obtained; null stands for one that is not finite."""
    if figures is None:
        return None
    ppl = math.inf if figures["ppl"] is None else figures["ppl"]
    return {"ppl": ppl, "how": f"{figures.get('protocol', 'static')}, {_columns(figures['columns'])}"}


def _columns(number: int) -> str:
    return f"{number} column{'s' * (number > 1)}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60):02} min"
    return f"{int(minutes)} min {int(seconds % 60):02} s" if minutes >= 1 else f"{seconds:.1f} s"


def plain(value: Any) -> str:
    """A value of a configuration or a result as a person writes it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
