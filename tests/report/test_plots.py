"""Plots: where names stand, and figures that can stand in one page."""

import itertools
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from lstmlm.report import plots
from lstmlm.report.plots import DARK, PLOTS, draw, png, spread, svg
from lstmlm.report.runs import read_runs
from tests.report.conftest import WriteRun, metric_lines


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(1, 50))
def test_names_keep_their_gap_and_their_order(hundredths: Sequence[int], thousandths: int) -> None:
    wanted, gap = [number / 100 for number in hundredths], thousandths / 1000
    places = spread(wanted, gap)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    ordered = [places[i] for i in order]
    assert all(after - before >= gap - 1e-9 for before, after in itertools.pairwise(ordered))
    assert min(ordered) >= -1e-9
    assert max(ordered) <= 1 + 1e-9


def test_names_that_do_not_meet_stay_where_they_are() -> None:
    assert spread([0.9, 0.1, 0.5], 0.2) == [0.9, 0.1, 0.5]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.5, 0.7])
    assert spread([1.0, 1.0], 0.2) == pytest.approx([0.8, 1.0])


def test_every_plot_names_every_run(write_run: WriteRun) -> None:
    names = ["first", "dollar $x$ & <b>", "a-long-name-of-a-run-of-last-november"]
    records = read_runs([write_run(name, metric_lines(30, 90 + i)) for i, name in enumerate(names)])
    identifiers: list[str] = []
    for plot in PLOTS:
        figure = draw(plot, records)
        assert figure is not None
        assert png(figure).startswith(b"\x89PNG")
        text = svg(figure, plot.name)
        texts = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
        assert {"first", "dollar $x$ & <b>", "a-long-name-o…ast-november"} <= set(texts), plot.name
        assert any(word.startswith(plot.title) for word in texts if word)
        found = re.findall(r' id="([^"]+)"', text)
        assert set(re.findall(r"url\(#(\w+)\)", text)) <= set(found)
        identifiers += found
        colours = set(re.findall(r"var\(--c(\w{6})", text))
        assert {f"#{colour}" for colour in colours} <= DARK.keys(), "every colour has its value in a dark window"
        assert len(colours) >= 5
    assert len(set(identifiers)) == len(identifiers), "figures share no id"


def test_a_metric_that_no_run_has_gives_no_plot(write_run: WriteRun) -> None:
    lines = [{"step": 1, "tokens": 10, "valid/ppl": 9.0, "valid/loss": 2.2}]
    records = read_runs([write_run("a", lines), write_run("b", [])])
    drawn = [plot.name for plot in PLOTS if draw(plot, records) is not None]
    assert drawn == ["loss-over-tokens", "perplexity-over-tokens"]


@pytest.mark.filterwarnings("error::UserWarning")
def test_runs_of_very_different_perplexities_share_a_plot(write_run: WriteRun) -> None:
    records = read_runs([write_run("toy", metric_lines(10, 6)), write_run("words", metric_lines(300, 200))])
    for plot in PLOTS:
        figure = draw(plot, records)
        assert figure is not None
        if plot.key == "valid/ppl":
            low, high = figure.axes[0].get_ylim()
            assert 0 < low < 6 < 200 < high


def test_runs_are_told_apart() -> None:
    styles = [(plots.colour(place), plots.dashes(place)) for place in range(24)]
    assert len(set(styles)) == 24
