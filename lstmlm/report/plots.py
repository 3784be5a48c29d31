"""The plots of a report: curves of runs under a legend, as SVG for the page and as PNG."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lstmlm.report.runs import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Six colours that keep apart under every kind of colour-blindness and stand out on white; then the same again, dashed. In the page
# every colour becomes a CSS variable, which has its own value in a dark window.
INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", INK, "#009e73", "#80107a", "#d17a9a")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
DARKENED = ("#4f9fe8", "#e8743b", "#f0f0f0", "#12916b", "#9550c8", "#ffc24d", "#a3a9b2", "#343942")
DARK = dict(zip((*COLOURS, MUTED, GRID), DARKENED, strict=True))
WIDTH, HEIGHT, FONT = 5.4, 3.1, 9.5  # inches, inches without the legend, points
LINE, LETTER = 0.165, 0.08  # inches that a line and a letter of the legend take
LONGEST_NAME = 26  # letters of a name that are shown
TIMES = ((3600.0, "wall time in hours"), (60.0, "wall time in minutes"), (1.0, "wall time in seconds"))


@dataclass(frozen=True)
class Plot:
    """One plot of a report."""

    name: str  # of its file
    title: str  # what it shows, with the unit of its vertical axis
    over: str  # the horizontal axis: tokens or seconds
    key: str  # the metric, drawn strong
    background: str = ""  # a metric drawn faint behind it
    log: bool = False  # whether the vertical axis is logarithmic where the values span more than a factor of 2


LOSS = "Loss in nats per token: validation, and training (faint)"
PERPLEXITY = "Validation perplexity"
PLOTS = (
    Plot("loss-over-tokens", LOSS, "tokens", "valid/loss", background="train/loss"),
    Plot("loss-over-time", LOSS, "seconds", "valid/loss", background="train/loss"),
    Plot("perplexity-over-tokens", PERPLEXITY, "tokens", "valid/ppl", log=True),
    Plot("perplexity-over-time", PERPLEXITY, "seconds", "valid/ppl", log=True),
    Plot("learning-rate", "Learning rate", "tokens", "train/lr"),
    Plot("gradient-norm", "Gradient norm before clipping", "tokens", "train/grad_norm", log=True),
    Plot("throughput", "Training speed in tokens per second", "tokens", "train/tokens_per_second"),
)


def draw(plot: Plot, rows: Sequence[Row]) -> "Figure | None":
    """One plot: for each row its curve, and one standard deviation on both sides of it where the row is of several seeds. None where no
    row has the metric."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    curves = [row.curve(plot.key, plot.over) for row in rows]
    behind = [row.curve(plot.background, plot.over) for row in rows]
    x_all, y_all, _ = np.concatenate(curves + behind, 1)
    if not x_all.size:
        return None
    scale, unit = 1.0, "training tokens"
    if plot.over == "seconds":
        scale, unit = next((of for of in TIMES if x_all.max() > 2 * of[0]), TIMES[-1])
    names = [_shorten(row.name) for row in rows]
    per_line = min(len(rows), max(1, int(WIDTH / (0.6 + LETTER * max(map(len, names))))))
    legend = LINE * -(-len(rows) // per_line)
    height = HEIGHT + legend
    with rc_context({"font.size": FONT, "text.parse_math": False}):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.62 / WIDTH, 0.5 / height, (WIDTH - 0.77) / WIDTH, (HEIGHT - 0.86) / height))
        for i, (row, faint, (x, y, deviation)) in enumerate(zip(rows, behind, curves, strict=True)):
            style: dict[str, Any] = {"color": colour(i), "dashes": dashes(i)}
            style |= {"linewidth": 1.6, "marker": "o", "markersize": 2.6} if len(x) <= 60 else {"linewidth": 1.0}
            axes.plot(x / scale, y, label=names[i], zorder=2, **style)
            alpha = max(0.12, 0.45 / len(rows) ** 0.5)
            axes.plot(faint[0] / scale, faint[1], color=colour(i), linewidth=0.8, alpha=alpha, zorder=1)
            if len(row.records) > 1:
                axes.fill_between(x / scale, y - deviation, y + deviation, color=colour(i), alpha=0.18, linewidth=0)
        _axes(figure, axes, plot, unit, x_all / scale, y_all)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0, 1 - 0.26 / height), borderaxespad=0, borderpad=0, ncols=per_line,
            frameon=False, labelcolor=INK, handlelength=2.4, columnspacing=1.2, labelspacing=0.2,
        )  # fmt: skip
        return figure


def colour(place: int) -> str:
    """Of the run at a place of the list, from 0."""
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> tuple[float, ...]:
    """Of the run at a place of the list, in points; () is a solid line."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def png(figure: "Figure") -> bytes:
    """A figure as PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def svg(figure: "Figure", name: str) -> str:
    """A figure as an `<svg>` element in a page. Ids are made from `name`, which is another one for each figure of the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyph
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure
    text = re.sub(r"font-family: [^;]*; ", "", text)  # the page's
    return re.sub(r"(fill|stroke): #([0-9a-f]{6})", r"\1: var(--c\2, #\2)", text)


def _axes(figure: "Figure", axes: "Axes", plot: Plot, unit: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Title, scales, and ticks with their unit, for points (n,) each."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = y.min(), y.max()
    logarithmic = plot.log and low > 0 and high > 2 * low
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7), numticks=9))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if plot.key.startswith("valid/"):  # the first steps would take the whole height
        later = y[x >= 0.05 * x.max()].max()
        axes.set_ylim(top=later + 0.05 * (later - low))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" ") if plot.over == "tokens" else FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel(unit, color=MUTED)
    axes.set_xlim(left=0)
    title = f"{plot.title} (logarithmic)" if logarithmic else plot.title
    figure.text(0, 0.99, title, verticalalignment="top", color=INK, fontsize=FONT + 1, fontweight="bold")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=MUTED)
    for side in axes.spines.values():
        side.set_visible(False)


def _shorten(name: str) -> str:
    """The name, or its two ends where it is long. (A legend leaves out what begins with "_".)"""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
