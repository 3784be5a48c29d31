"""The plots of a report: curves of runs with their names at the curves' ends, as SVG for the page and as PNG."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lstmlm.report.runs import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Six colours that keep apart under every kind of colour-blindness and stand out on white; then the same again, dashed. In the page
# every colour becomes a CSS variable, which has its own value in a dark window.
INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", INK, "#009e73", "#80107a", "#d17a9a")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
DARK = {
    "#0072b2": "#4f9fe8",
    "#d55e00": "#e8743b",
    INK: "#f0f0f0",
    "#009e73": "#12916b",
    "#80107a": "#9550c8",
    "#d17a9a": "#ffc24d",
    MUTED: "#a3a9b2",
    GRID: "#343942",
}
WIDTH, HEIGHT, FONT = 6.8, 3.3, 9.5  # inches, inches, points
ROW = 0.17  # inches that a name takes
LONGEST_NAME = 26  # letters of a name that are shown
TIMES = ((3600.0, "wall time in hours"), (60.0, "wall time in minutes"), (1.0, "wall time in seconds"))


@dataclass(frozen=True)
class Plot:
    """One plot of a report.

    Attributes:
        name: Of its file.
        title: What it shows, with the unit of its vertical axis.
        over: The horizontal axis: `tokens` or `seconds`.
        key: The metric, drawn strong.
        background: A metric drawn faint behind it.
        log: Whether the vertical axis is logarithmic where the values span more than a factor of 2.
    """

    name: str
    title: str
    over: str
    key: str
    background: str | None = None
    log: bool = False


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


def draw(plot: Plot, records: Sequence[RunRecord]) -> "Figure | None":
    """Draw one plot.

    Args:
        plot: Which.
        records: Runs, each with the colour and dashes of its place.

    Returns:
        The figure; None where no run has the metric.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scale, unit = 1.0, "training tokens"
    if plot.over == "seconds":
        longest = max(max(record.curve("seconds", "seconds")[0], default=0) for record in records)
        scale, unit = next((of for of in TIMES if longest > 2 * of[0]), TIMES[-1])
    with rc_context({"font.size": FONT, "text.parse_math": False}):
        height = max(HEIGHT, ROW * len(records) + 0.9)
        figure = Figure(figsize=(WIDTH, height))
        names = [_shorten(record.name) for record in records]
        margin = 0.35 + 0.6 * FONT / 72 * max(map(len, names))  # inches, for the names
        axes = figure.add_axes((0.62 / WIDTH, 0.5 / height, (WIDTH - 0.62 - margin) / WIDTH, (height - 0.85) / height))
        points: list[tuple[float, float]] = []
        ends: dict[int, tuple[float, float]] = {}  # of each run's strongest curve
        for i, record in enumerate(records):
            for key in (plot.background, plot.key):
                x, y = record.curve(key, plot.over) if key else ([], [])
                if not x:
                    continue
                x = [one / scale for one in x]
                style: dict[str, Any] = {"color": colour(i), "zorder": 2}
                if key != plot.key:
                    style |= {"linewidth": 0.8, "alpha": max(0.12, 0.45 / len(records) ** 0.5), "zorder": 1}
                elif len(x) <= 60:
                    style |= {"linewidth": 1.6, "dashes": dashes(i), "marker": "o", "markersize": 2.6}
                else:
                    style |= {"linewidth": 1.0, "dashes": dashes(i)}
                axes.plot(x, y, **style)
                points += zip(x, y, strict=True)
                ends[i] = points[-1]
        if not ends:
            return None
        _axes(figure, axes, plot, unit, points)
        _names(axes, ends, names, height)
        return figure


def colour(place: int) -> str:
    """Colour of the run at a place of the list, from 0."""
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> tuple[float, ...]:
    """Dashes of the run at a place of the list, in points; () is a solid line."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def png(figure: "Figure") -> bytes:
    """A figure as PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def svg(figure: "Figure", name: str) -> str:
    """A figure as an `<svg>` element that stands beside others in a page.

    Args:
        figure: The figure.
        name: Different for each figure of a page: ids are made from it.
    """
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


def _axes(figure: "Figure", axes: "Axes", plot: Plot, unit: str, points: Sequence[tuple[float, float]]) -> None:
    """Title, scales, and ticks with their unit."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.dataLim.intervaly
    logarithmic = plot.log and low > 0 and high > 2 * low
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7), numticks=9))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if plot.key.startswith("valid/"):  # the first steps would take the whole height
        later = [y for x, y in points if x >= 0.05 * axes.dataLim.x1]
        axes.set_ylim(top=max(later) + 0.05 * (max(later) - axes.dataLim.y0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        EngFormatter(sep=" ") if plot.over == "tokens" else FuncFormatter(lambda x, _: f"{x:g}")
    )
    axes.set_xlabel(unit, color=MUTED)
    axes.set_xlim(left=0)
    title = f"{plot.title} (logarithmic)" if logarithmic else plot.title
    figure.text(0, 0.99, title, verticalalignment="top", color=INK, fontsize=FONT + 1, fontweight="bold")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=MUTED)
    for side in axes.spines.values():
        side.set_visible(False)


def _names(axes: "Axes", ends: dict[int, tuple[float, float]], names: Sequence[str], height: float) -> None:
    """Each name at the right, level with the end of its curve or near it, and a thin line from one to the other."""
    axes.set_ylim(axes.get_ylim())  # both limits stay
    axes.set_xlim(axes.get_xlim())
    to_fraction = (axes.transData + axes.transAxes.inverted()).transform
    heights = [float(to_fraction(end)[1]) for end in ends.values()]
    for (i, end), at in zip(ends.items(), spread(heights, ROW / (height - 0.85)), strict=True):
        axes.annotate(
            names[i],
            xy=end,
            xytext=(1.04, at),
            textcoords="axes fraction",
            verticalalignment="center",
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour(i),
                "linewidth": 0.7,
                "linestyle": ":",
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places near the wanted ones, in their order, that keep a gap; within 0 and 1 as long as there is room.

    Args:
        wanted: Places along an axis.
        gap: Least distance of neighbours.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    floor = 0.0
    for i in order:
        places[i] = max(wanted[i], floor)
        floor = places[i] + gap
    ceiling = 1.0
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _shorten(name: str) -> str:
    """The name, or its two ends where it is long."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
