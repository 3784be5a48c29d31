"""What a report reads from run directories, against definitions written out."""

import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmlm import UserError
from lstmlm.report.runs import differences, read_rows, read_run
from tests.report.conftest import SUMMARY, WriteRun, metric_lines


def line(tokens: int, **values: Any) -> dict[str, Any]:
    return {"step": tokens // 10, "epoch": 1, "tokens": tokens} | {key.replace("_", "/", 1): value for key, value in values.items()}


def test_a_curve_has_the_points_that_can_be_drawn(write_run: WriteRun) -> None:
    lines = [
        line(10, valid_ppl=9.0, seconds=1.5),
        line(20, train_loss=2.0, seconds=2.5),
        line(30, valid_ppl=math.inf, seconds=3.5),
        line(40, valid_ppl=math.nan, seconds=4.5),
        line(50, valid_ppl=None, seconds=5.5),
        line(60, valid_ppl=1e300, seconds=6.5),
        line(70, valid_ppl=6, seconds=7.5) | {"a key of tomorrow": [1]},
    ]
    record = read_run(write_run("a", lines), "a")
    assert record.points("valid/ppl", "tokens") == {1: (10, 9), 7: (70, 6)}
    assert record.points("valid/ppl", "seconds") == {1: (1.5, 9), 7: (7.5, 6)}
    assert record.points("absent", "tokens") == {}
    assert record.points("train/loss", "seconds") == {2: (2.5, 2)}
    assert record.best == (1, 6)


LOOP, FOLDER = object(), object()  # a link to itself, a folder, in a file's place
FINE = '{"step": 1, "epoch": 1, "tokens": 9}\n'
TOKENS = ['"9"', "9.5", "-9", "null", "true", "9" * 30, "9" * 5000]
MORE = ['"seconds": "x"', '"seconds": NaN', '"train/lr": []', '"valid/ppl": "7"']
SUMMARIES = [
    {"valid": None},
    *({"test": {"ppl": 2.5, "columns": 1} | wrong} for wrong in ({"ppl": "1"}, {"ppl": -1e308}, {"columns": "1"}, {"columns": None})),
    {"parameters": "many"},
    {"ranks": None},
    {"device": 1},
]
BROKEN = {
    "config.yaml": [None, LOOP, FOLDER, "", "data: [1,", "optimizer: {lr: 1}", "just words", b"\xff\xfe", "train: {epochs: many}"],
    "metrics.jsonl": [LOOP, FOLDER, "[]\n", "\x00\n", b"\xff\n", FINE + "1\n", '{"step": 1}\n', "[" * 9999 + "\n"]
    + [FINE.replace("9", tokens) for tokens in [*TOKENS, *(f"9, {more}" for more in MORE)]],
    "summary.json": [LOOP, FOLDER, "", "[]", "null", "{}", "\x00", b"\xff", "[" * 9999]
    + [json.dumps(SUMMARY | wrong) for wrong in SUMMARIES],
    "samples.jsonl": [LOOP, FOLDER, "[]\n", b"\xff\n", FINE, '{"texts": []}\n']
    + [FINE.replace("9", f'9, "texts": {texts}') for texts in ('"a"', "[1]", '["\\ud800"]')],
}


@pytest.mark.parametrize(("file", "place"), [(file, i) for file, kinds in BROKEN.items() for i in range(len(kinds))])
def test_a_broken_run_is_named_and_the_others_are_read(
    file: str, place: int, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = write_run("broken", metric_lines(3), summary=SUMMARY), write_run("good", metric_lines(3))
    path, content = broken / file, BROKEN[file][place]
    path.unlink(missing_ok=True)
    if content is LOOP:
        path.symlink_to(path)
    elif content is FOLDER:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    with caplog.at_level(logging.WARNING):
        assert [row.name for row in read_rows([broken, good])] == ["good"]
    (message,) = caplog.messages
    assert str(broken) in message
    assert file in message
    assert message.endswith(": left out")
    assert "\n" not in message
    assert len(message) < 500
    with pytest.raises(UserError, match="no run to report on"):
        read_rows([broken])


def test_what_is_no_directory(tmp_path: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "report.html").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    paths = [tmp_path / name for name in ("report.html", "absent", "loop", "n" * 300)]
    assert [row.name for row in read_rows([*paths, write_run("good", metric_lines(3))])] == ["good"]
    assert len(caplog.messages) == len(paths)


def test_names(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_run(name, metric_lines(3)) for name in ("x/run", "y/run", "other", "tab\there")]
    monkeypatch.chdir(tmp_path)
    rows = read_rows(["x/run", "y/run", paths[2], "other", paths[3]])
    assert [row.name for row in rows] == ["x/run", "y/run", "other", "tab\\there"]


def test_runs_that_differ_in_their_seed_alone_are_one_row(write_run: WriteRun) -> None:
    ends = {1: 90.0, 2: 84.0, 3: 93.0}
    drawn = {1: -300, 2: 0, 3: 300}  # with data.bptt_jitter a seed has other tokens at a step
    runs = [
        write_run(f"s{seed}", [line | {"tokens": line["tokens"] + drawn[seed]} for line in metric_lines(30, ppl)], f"--train.seed={seed}")
        for seed, ppl in ends.items()
    ]
    again = write_run("again", metric_lines(30, 50.0), "--train.seed=2")
    other = write_run("other", metric_lines(30, 70.0), "--train.seed=4", "--optim.lr=0.5")
    longer = write_run("longer", metric_lines(40, 60.0), "--train.seed=1", "--train.run_dir=elsewhere")
    rows = read_rows([runs[0], other, *runs[1:], again, longer])
    assert [row.name for row in rows] == ["s1 (3 seeds)", "other", "again (2 seeds)"]
    x, mean, deviation = rows[0].curve("valid/ppl", "tokens")
    assert x.tolist() == [600_000, 1_200_000, 1_800_000]
    factor = np.array([1 + 20 / 30, 1 + 10 / 30, 1])
    np.testing.assert_allclose(mean, factor * statistics.fmean(ends.values()))
    np.testing.assert_allclose(deviation, factor * statistics.stdev(ends.values()))
    assert rows[2].curve("valid/ppl", "tokens").shape == (3, 3), "as far as the shorter run goes"
    assert rows[1].curve("valid/ppl", "tokens")[2].tolist() == [0, 0, 0]
    assert rows[0].curve("absent", "tokens").shape == (3, 0)
    assert rows[0].config("train.seed") == [1, 2, 3]


def test_differences_are_of_what_decides_a_run(write_run: WriteRun) -> None:
    a = write_run("a", [], "--optim.lr=0.5", "--train.run_dir=a", "--tracking.group=g")
    b = write_run("b", [], "--optim.lr=0.25", "--train.run_dir=b", "--train.resume=true", "--data.cache_dir=c")
    assert differences(read_rows([a, b])) == ["optim.lr"]
    assert differences(read_rows([a])) == []
    # A version before warm-up wrote no such key: it had none.
    text = (b / "config.yaml").read_text()
    assert "  warmup_steps: 0\n" in text
    (b / "config.yaml").write_text(text.replace("  warmup_steps: 0\n", "").replace("seed: 1\n", "seed: 2\n"))
    assert differences(read_rows([a, b])) == ["optim.lr", "train.seed"]


def test_evaluations_and_samples(write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    samples = [{"step": 10, "epoch": 1, "tokens": 300, "texts": ["a b", "c d"]}]
    result = {"split": "test", "ppl": 70.5, "protocol": "cache", "columns": 1, "bpc": 1.25, "seconds": 3}
    broken: list[Any] = [{"ppl": 3.0}, [], result | {"ppl": "3"}, result | {"columns": "1"}, result | {"settings": 3}]
    evaluations = {"cache.json": result} | {f"other-{i}.json": value for i, value in enumerate(broken)}
    path = write_run("a", [], summary=SUMMARY, samples=samples, evaluations=evaluations)
    (path / "evaluations/loop.json").symlink_to("loop.json")
    record = read_run(path, "a")
    assert record.samples == samples
    (found,) = record.evaluations.items()
    assert found[0] == "cache.json"
    assert (found[1].split, found[1].ppl, found[1].bpc, found[1].settings) == ("test", 70.5, 1.25, {})
    assert record.summary is not None
    assert record.summary.test.ppl == SUMMARY["test"]["ppl"]
    assert len(caplog.messages) == len(broken) + 1
    assert all("holds no result of evaluate --json" in message for message in caplog.messages)
