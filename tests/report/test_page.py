"""The page: it says what the runs say, and needs nothing but itself."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from lstmlm import cli, load_config
from lstmlm.console import UsageError
from lstmlm.files import Output
from lstmlm.report.page import write_report
from lstmlm.report.plots import PLOTS
from tests.helpers import fresh_train
from tests.report.conftest import SUMMARY, WriteRun, metric_lines

pytestmark = pytest.mark.system  # whole runs or processes


class Page:
    """Words of each table cell and of the rest, what a browser would fetch, and ids. A page is XML too, so each element is closed."""

    def __init__(self, path: Path) -> None:
        self.source = path.read_text()
        root = ElementTree.fromstring(self.source)
        self.rows = [[" ".join(" ".join(cell.itertext()).split()) for cell in row] for row in root.iter("tr")]
        self.words = {" ".join(text.split()) for text in root.itertext()}
        names = [(name, value) for element in root.iter() for name, value in element.items()]
        self.ids = [value for name, value in names if name == "id"]
        self.fetched = [value for name, value in names if name.endswith(("src", "href")) and not value.startswith("#")]
        self.fetched += [element.tag for element in root.iter() if element.tag.endswith("script")]


def test_what_the_page_says(write_run: WriteRun, tmp_path: Path) -> None:
    cache = {"split": "test", "ppl": 70.518, "protocol": "cache", "columns": 1, "bpc": 1.5, "settings": {"theta": 0.7, "a": True}}
    finished = write_run(
        "<b>finished",
        metric_lines(20, 90.0),
        "--optim.lr=0.002",
        summary=SUMMARY,
        samples=[{"step": 5 * i, "epoch": i, "tokens": 9, "texts": [f"text {i} <eos>", "more"]} for i in (1, 2)],
        evaluations={"cache.json": cache, "own.json": {"text": "a.txt", "ppl": 9, "columns": 1, "reset": "line"}},
    )
    going = write_run("going", metric_lines(10, 95.0, speed=100.0), "--optim.lr=0.001")
    write_report([finished, going], Output(tmp_path / "page.html"), tmp_path / "plots")
    page = Page(tmp_path / "page.html")
    assert page.fetched == [], "one file: no network, no script"
    assert "default-src 'none'" in page.source, "and none would be let in"
    assert len(set(page.ids)) == len(page.ids), "figures share no id"
    results = page.rows[1:3]
    assert results[0] == [
        "<b>finished finished, 3,520,000 parameters, 2 ranks on cpu, auto",
        "90.00 epoch 2, 10 columns",
        "90.02 1.250 bits per character static, 1 column",
        "81.45 static, 1 column",
        "1,200,000",
        "20:00",
        "1,000",
    ]
    assert results[1] == ["going not finished, epoch 1 of 40, auto", "95.00 epoch 1, 10 columns", "-", "-", "600,000", "1:40:00", "100"]
    assert page.rows[3:6] == [["run", "optim.lr"], ["<b>finished", "0.002"], ["going", "0.001"]]
    assert page.rows[7] == ["<b>finished", "cache.json", "test", "cache theta 0.7, a true", "1", "-", "70.52 1.500 bits per character"]
    assert page.rows[8] == ["<b>finished", "own.json", "a.txt", "static", "1 reset line", "-", "9.00"]
    assert {"text 1 <eos>", "text 2 <eos>", "1 earlier"} <= page.words
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {plot.name for plot in PLOTS} <= set(page.ids)


def test_one_run_compares_nothing_and_many_differences_stand_in_rows(write_run: WriteRun, tmp_path: Path) -> None:
    a = write_run("a", metric_lines(10))
    b = write_run("b", metric_lines(10), "--optim.lr=0.5", "--train.epochs=3", "--model.dropout=0.1")
    write_report([a], Output(tmp_path / "page.html"))
    words = Page(tmp_path / "page.html").words
    assert {"Run a", "optim.lr"} <= words
    assert not {"What differs between the configurations", "Sample texts", "Evaluations beside the model"} & words
    write_report([a, b], Output(tmp_path / "page.html"))
    rows = Page(tmp_path / "page.html").rows
    assert rows[3:] == [["key", "a", "b"], ["model.dropout", "0.5", "0.1"], ["optim.lr", "0.001", "0.5"], ["train.epochs", "40", "3"]]


def test_seeds_are_one_row_and_the_lowest_is_among_the_same_tokens(write_run: WriteRun, tmp_path: Path) -> None:
    def run(name: str, ppl: float, *overrides: str) -> Path:
        summary = SUMMARY | {"test": SUMMARY["test"] | {"ppl": ppl}}
        return write_run(name, metric_lines(10, ppl), *overrides, summary=summary)

    runs = [run(f"seed-{seed}", 80.0 + seed, f"--train.seed={seed}") for seed in (1, 2, 3)]
    better, worse = run("better", 79.5, "--model.dropout=0.25"), run("worse", 85.0, "--model.dropout=0.75")
    characters = run("characters", 3.0, "--data.level=char")
    diverged, begun = run("diverged", math.inf, "--optim.lr=9"), run("begun", 4.0, "--train.init_from=elsewhere")
    write_report([*runs, worse, better, characters, diverged, begun], Output(tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    rows = page.rows[1:7]
    assert [row[3].split(" static")[0] for row in rows] == ["82.00 ± 1.00", "85.00", "79.50", "3.00", "inf", "4.00"]
    assert rows[0][0].startswith("seed-1 (3 seeds) 3 finished of seed-1, seed-2, seed-3, ")
    bold = re.findall(r'class="best">\s*([\d.]+)', page.source)
    assert sorted(set(bold)) == ["79.50", "90.02"], "not of the characters and of another vocabulary, whose tokens are others"


def test_a_real_run(small: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any) -> None:
    fresh_train(load_config(small("--train.max_steps=2")))
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    (tmp_path / "foreign").mkdir()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    caplog.clear()
    assert cli.report(["run", "foreign", "--output", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert caplog.messages == ["cannot read foreign/config.yaml: No such file or directory: left out"]
    row = Page(tmp_path / "page.html").rows[1]
    test = summary["test"]
    assert row[3] == f"{test['ppl']:.2f} {test['bpc']:.3f} bits per character static, 1 column"
    assert row[4] == f"{summary['tokens']:,}"


def test_a_plot_in_a_files_place_is_refused_and_a_link_written_through(write_run: WriteRun, tmp_path: Path) -> None:
    run, plot = write_run("a", metric_lines(3)), tmp_path / "png/loss-over-tokens.png"
    plot.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"--png .*loss-over-tokens\.png is a folder"):
        write_report([run], Output(tmp_path / "page.html"), tmp_path / "png")
    plot.rmdir()
    plot.symlink_to(tmp_path / "elsewhere.png")
    write_report([run], Output(tmp_path / "page.html"), tmp_path / "png")
    assert plot.is_symlink()
    assert (tmp_path / "elsewhere.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "name run"),
        (["a", "--group=g"], "--group belongs to --wandb"),
        *((["--wandb=a/b", f"--{n}=a"], "--output and") for n in ("png", "output")),
    ],
)
def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=named):
        cli.report(arguments)
    assert list(tmp_path.iterdir()) == []
