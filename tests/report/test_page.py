"""The page: it says what the runs say, and needs nothing but itself."""

import json
import math
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from lstmlm import load_config
from lstmlm.files import Output
from lstmlm.report.page import plain, write_report
from tests.helpers import fresh_train
from tests.report.conftest import SUMMARY, WriteRun, metric_lines
from tests.system.launcher import error_lines

pytestmark = pytest.mark.system  # whole runs or processes
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Words of each table cell and of the rest, and what a browser would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text())
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "script":
            self.fetched.append("script")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if words := " ".join(data.split()):
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] = f"{self.rows[-1][-1]} {words}".strip()
            self.words.append(words)


def test_what_the_page_says(write_run: WriteRun, tmp_path: Path) -> None:
    finished = write_run(
        "<b>finished",
        metric_lines(20, 90.0),
        "--optim.lr=0.002",
        summary=SUMMARY,
        samples=[{"step": 5 * i, "epoch": i, "tokens": 9, "texts": [f"text {i} <eos>", "more"]} for i in (1, 2)],
        evaluations={"test-cache.json": {"split": "test", "ppl": 70.518, "protocol": "cache", "columns": 1, "bpc": 1.5}},
    )
    going = write_run("going", metric_lines(10, 95.0, speed=100.0), "--optim.lr=0.001")
    write_report([finished, going], Output(tmp_path / "page.html"), tmp_path / "plots")
    page = Page(tmp_path / "page.html")
    assert page.fetched == [], "one file: no network, no script"
    assert len(set(page.ids)) == len(page.ids)
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
    assert page.rows[7] == ["<b>finished", "test-cache.json", "test", "cache", "1", "-", "70.52 1.500 bits per character"]
    assert {"text 1 <eos>", "text 2 <eos>", "1 earlier"} <= set(page.words)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {f"{name}.png" for name in page.ids if "-" in name} | {
        "throughput.png"
    }


def test_one_run_shows_its_configuration_and_compares_nothing(write_run: WriteRun, tmp_path: Path) -> None:
    write_report([write_run("only", metric_lines(10))], Output(tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    assert "Run only" in page.words
    assert "optim.lr" in page.words
    assert not {"What differs between the configurations", "Sample texts", "Evaluations beside the model"} & set(page.words)


def test_many_differences_stand_in_rows(write_run: WriteRun, tmp_path: Path) -> None:
    a = write_run("a", metric_lines(10))
    b = write_run("b", metric_lines(10), "--optim.lr=0.5", "--train.epochs=3", "--model.dropout=0.1")
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
    diverged = run("diverged", math.inf, "--optim.lr=9")
    write_report([*runs, worse, better, characters, diverged], Output(tmp_path / "page.html"))
    rows = Page(tmp_path / "page.html").rows[1:6]
    assert [row[3].split(" static")[0] for row in rows] == ["82.00 ± 1.00", "85.00", "79.50", "3.00", "inf"]
    assert rows[0][0].startswith("seed-1 (3 seeds) 3 finished of seed-1, seed-2, seed-3, ")
    bold = re.findall(r'class="best">\s*([\d.]+)', (tmp_path / "page.html").read_text())
    assert sorted(set(bold)) == ["79.50", "90.02"], "not of the characters, whose tokens are others"


def test_a_real_run_from_the_command_line(
    small: Callable[..., list[str]], cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    fresh_train(load_config(small()))
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    (tmp_path / "foreign").mkdir()
    result = cli("report", "run", "foreign", "--output", "page.html", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "page.html\n"
    assert result.stderr == "warning: foreign holds no run (no config.yaml): left out\n"
    row = Page(tmp_path / "page.html").rows[1]
    test = summary["test"]
    assert row[3] == f"{test['ppl']:.2f} {test['bpc']:.3f} bits per character static, 1 column"
    assert row[4] == f"{summary['tokens']:,}"


@pytest.mark.parametrize(
    ("arguments", "status", "named"), [([], 2, "runs"), (["absent"], 1, "no run to report on in absent"), (["--outt=x", "a"], 2, "--outt")]
)
def test_wrong_use(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, arguments: list[str], status: int, named: str
) -> None:
    result = cli("report", *arguments, cwd=tmp_path)
    assert result.returncode == status
    assert named in error_lines(result.stderr)[-1]
    assert list(tmp_path.iterdir()) == []


def test_plain_values() -> None:
    assert plain({"name": "cache", "window": 2000, "theta": 0.662, "on": True}) == "name cache, window 2000, theta 0.662, on true"
    assert plain([0.9, 0.999]) == "[0.9, 0.999]"
