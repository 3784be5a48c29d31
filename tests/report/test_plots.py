"""Plots: what they show, and figures that can stand in one page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lstmlm.report.plots import DARK, PLOTS, draw, png, svg
from lstmlm.report.runs import read_rows
from tests.report.conftest import WriteRun, metric_lines


def test_every_plot_names_every_run(write_run: WriteRun) -> None:
    names = ["_first", "dollar $x$ & <b>", "a-long-name-of-a-run-of-last-november"]
    rows = read_rows([write_run(name, metric_lines(30, 90 + i), f"--optim.lr=0.{i + 1}") for i, name in enumerate(names)])
    for plot in PLOTS:
        figure = draw(plot, rows)
        assert figure is not None
        assert png(figure).startswith(b"\x89PNG")
        text = svg(figure, plot.name)
        texts = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
        assert {" _first", "dollar $x$ & <b>", "a-long-name-o…ast-november"} <= set(texts), plot.name
        assert any(word.startswith(plot.title) for word in texts if word)
        assert set(re.findall(r"url\(#(\w+)\)", text)) <= set(re.findall(r' id="([^"]+)"', text))
        colours = set(re.findall(r"var\(--c(\w{6})", text))
        assert {f"#{colour}" for colour in colours} <= DARK.keys(), "every colour has its value in a dark window"
        assert len(colours) >= 5


def test_a_metric_that_no_run_has_gives_no_plot(write_run: WriteRun) -> None:
    lines = [{"step": 1, "epoch": 1, "tokens": 10, "valid/ppl": 9.0, "valid/loss": 2.2}]
    rows = read_rows([write_run("a", lines), write_run("b", [], "--optim.lr=0.5")])
    drawn = [plot.name for plot in PLOTS if draw(plot, rows) is not None]
    assert drawn == ["loss-over-tokens", "perplexity-over-tokens"]


def test_nothing_is_drawn_but_curves_and_the_band_over_seeds(write_run: WriteRun) -> None:
    runs = [write_run(f"s{seed}", metric_lines(30, 90 + seed), f"--train.seed={seed}") for seed in (1, 2)]
    stopped = write_run("stopped", metric_lines(20, 70), "--optim.lr=0.5")
    rows = read_rows([*runs, stopped])
    plot = next(plot for plot in PLOTS if plot.name == "perplexity-over-tokens")
    figure = draw(plot, rows)
    assert figure is not None
    (axes,) = figure.axes
    drawn = [np.asarray(line.get_xydata()) for line in axes.lines if len(line.get_xydata())]
    for row, points in zip(rows, drawn, strict=True):
        np.testing.assert_array_equal(points.T, row.curve(plot.key, plot.over)[:2])
    assert drawn[1][-1][0] == 1_200_000, "the stopped run ends where it stopped"
    assert not axes.texts
    (band,) = axes.collections
    x, mean, deviation = rows[0].curve(plot.key, plot.over)
    edges = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {*zip(x, mean - deviation, strict=True), *zip(x, mean + deviation, strict=True)} == edges
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["s1 (2 seeds)", "stopped"]
