"""What a report reads from run directories, against definitions written out."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from lstmlm import UserError
from lstmlm.report.runs import differences, read_run, read_runs
from tests.report.conftest import SUMMARY, WriteRun, metric_lines


def test_a_curve_has_the_finite_points_of_lines_that_hold_both(write_run: WriteRun) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "tokens": 10, "valid/ppl": 9.0, "seconds": 1.5},
        {"step": 2, "tokens": 20, "train/loss": 2.0, "seconds": 2.5},
        {"step": 3, "tokens": 30, "valid/ppl": math.inf, "seconds": 3.5},
        {"step": 4, "tokens": 40, "valid/ppl": math.nan, "seconds": 4.5},
        {"step": 5, "valid/ppl": 8.0, "seconds": 5.5},
        {"step": 6, "tokens": 60, "valid/ppl": "7", "seconds": 6.5},
        {"step": 7, "tokens": 70, "valid/ppl": 6, "seconds": 7.5, "a key of tomorrow": [1]},
    ]
    record = read_run(write_run("a", lines), "a")
    assert record.curve("valid/ppl", "tokens") == ([10.0, 70.0], [9.0, 6.0])
    assert record.curve("valid/ppl", "seconds") == ([1.5, 5.5, 7.5], [9.0, 8.0, 6.0])
    assert record.curve("absent", "tokens") == ([], [])
    assert record.timed
    assert record.best == lines[6]


def test_wall_time_is_derived_from_the_speed_of_each_interval(write_run: WriteRun) -> None:
    lines = [
        {"tokens": 1000, "train/tokens_per_second": 500},  # 2 s
        {"tokens": 1500, "valid/ppl": 9.0},  # half way to the next
        {"tokens": 2000, "train/tokens_per_second": 100},  # 10 s more
        {"tokens": 2000, "valid/ppl": 8.0},
        {"tokens": 2000, "train/tokens_per_second": 100},  # no tokens since
    ]
    record = read_run(write_run("a", lines), "a")
    assert not record.timed
    assert [line["seconds"] for line in record.lines] == [2, 7, 12, 12, 12]
    assert record.tokens_per_second == 100


def test_without_a_speed_there_is_no_wall_time(write_run: WriteRun) -> None:
    record = read_run(write_run("a", [{"tokens": 10, "valid/ppl": 9.0}]), "a")
    assert record.curve("valid/ppl", "seconds") == ([], [])
    assert record.curve("valid/ppl", "tokens") == ([10], [9])


def test_a_line_that_is_being_written_is_left_alone(write_run: WriteRun) -> None:
    path = write_run("a", metric_lines(3))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "tok')
    assert [line["step"] for line in read_run(path, "a").lines] == [100, 200, 300]


BROKEN = {
    "no config.yaml": ("config.yaml", None),
    "no metrics.jsonl": ("metrics.jsonl", None),
    "config.yaml is damaged": ("config.yaml", "data: [1,"),
    "config.yaml is damaged or not of this project: optimizer": ("config.yaml", "optimizer: {lr: 1}"),
    "not of this project": ("config.yaml", "just words"),
    "line 2 is no JSON object": ("metrics.jsonl", '{"step": 1}\n[]\n'),
    "line 1 is no JSON object": ("metrics.jsonl", "\x00\n"),
    "summary.json is damaged": ("summary.json", ""),
    "summary.json is damaged or not of this project": ("summary.json", "[]"),
}


@pytest.mark.parametrize("named", BROKEN)
def test_a_broken_run_is_named_and_the_others_are_read(
    named: str, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = write_run("broken", metric_lines(3)), write_run("good", metric_lines(3))
    file, content = BROKEN[named]
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert [record.name for record in read_runs([broken, good])] == ["good"]
    (message,) = caplog.messages
    assert str(broken) in message
    assert named in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no run to report on"):
        read_runs([broken])


def test_what_is_no_directory(tmp_path: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "report.html").write_text("")
    records = read_runs([tmp_path / "report.html", tmp_path / "absent", write_run("good", metric_lines(3))])
    assert [record.name for record in records] == ["good"]
    assert len(caplog.messages) == 2


def test_names(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_run(name, metric_lines(3)) for name in ("x/run", "y/run", "other", "tab\there")]
    monkeypatch.chdir(tmp_path)
    records = read_runs(["x/run", "y/run", paths[2], "other", paths[3]])
    assert [record.name for record in records] == ["x/run", "y/run", "other", "tab?here"]


def test_differences_are_of_what_decides_a_run(write_run: WriteRun) -> None:
    a = write_run("a", [], "--optim.lr=0.5", "--train.run_dir=a", "--tracking.group=g")
    b = write_run("b", [], "--optim.lr=0.25", "--train.run_dir=b", "--train.resume=true", "--data.cache_dir=c")
    assert differences(read_runs([a, b])) == ["optim.lr"]
    assert differences(read_runs([a])) == []
    # A version before warm-up wrote no such key: it had none.
    text = (b / "config.yaml").read_text()
    assert "  warmup_steps: 0\n" in text
    (b / "config.yaml").write_text(text.replace("  warmup_steps: 0\n", "").replace("seed: 1\n", "seed: 2\n"))
    assert differences(read_runs([a, b])) == ["optim.lr", "train.seed"]


def test_evaluations_and_samples(write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    samples = [{"step": 10, "epoch": 1, "tokens": 300, "texts": ["a b", "c d"]}]
    result = {"split": "test", "ppl": 70.5, "protocol": "cache", "columns": 1}
    evaluations = {"test-cache.json": result, "other.json": {"ppl": 3.0}}
    record = read_run(write_run("a", [], summary=SUMMARY, samples=samples, evaluations=evaluations), "a")
    assert record.samples == samples
    assert record.evaluations == [result | {"file": "test-cache.json"}]
    assert record.summary == SUMMARY
    (message,) = caplog.messages
    assert "other.json holds no result" in message
