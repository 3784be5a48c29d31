"""The benchmark command runs and says what it promises; its figures are not judged here."""

import importlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lstmlm import LSTMLanguageModel
from lstmlm.data.corpus import load_corpus
from lstmlm.model.pretrained import save_pretrained
from tests.helpers import ROOT, SmallConfig
from tests.processes import SECONDS, SERVER, Processes

SCRIPTS = ROOT / "scripts"
SMALL = ["--model.embedding_size=12", "--model.hidden_size=12", "--data.bptt=5", "--data.batch_size=4", "--steps=2"]
PROMISED = "plain_ms ours_ms floor_ms ratio_plain ratio_floor tokens_per_second floor_ways peak_memory_mb device precision threads"


def arguments(text_folder: Path, cache: Path) -> list[str]:
    return [f"--data.dataset={text_folder}", f"--data.cache_dir={cache}", *SMALL, "--json", "--device=cpu", "--threads=1"]


def benchmark(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What the command prints, run in this process; `scripts` is on its path."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", ["benchmark.py", *words])
    assert importlib.import_module("benchmark").main() == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_json_object(text_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *arguments(text_folder, tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures.keys() >= set(PROMISED.split())
    assert figures["ratio_plain"] == pytest.approx(figures["plain_ms"] / figures["ours_ms"])
    assert (figures["device"], figures["precision"], figures["threads"]) == ("cpu", "fp32", 1)
    assert all(figures["shares"][part] > 0 for part in ("head", "lstm", "optimizer", "clip", "masks")), figures["shares"]


def test_ranks(text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The ranks are processes of a server that has imported torch."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ranks = importlib.import_module("benchmarks.ranks")
    monkeypatch.setattr(ranks, "multiprocessing", SimpleNamespace(get_context=lambda kind: SERVER))
    rows = benchmark([*arguments(text_folder, tmp_path), "--ranks", "1", "2"], monkeypatch, capsys)
    assert [row["ranks"] for row in rows] == [1, 2]


def test_heads(text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the processes that take turns, as the errors are those of this one."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    heads = importlib.import_module("benchmarks.heads")
    monkeypatch.setattr(heads, "workers", lambda *_: nullcontext())
    monkeypatch.setattr(heads, "take_turns", lambda *_: (defaultdict(lambda: [1.0]), defaultdict(float)))
    rows = {row["head"]: row for row in benchmark([*arguments(text_folder, tmp_path), "--heads"], monkeypatch, capsys)}
    assert {"plain", "plain, kept", "ours, kept"} <= rows.keys()
    for row in rows.values():
        assert 0 < max(row[key] for key in ("nll", "hidden_grad", "weight_grad", "bias_grad")) < 1e-5, row


def test_protocols(text_folder: Path, tmp_path: Path, small_config: SmallConfig) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_bytes((text_folder / "train.txt").read_bytes())
    config = small_config(f"--data.dataset={tmp_path}")
    vocabulary = load_corpus(config.data).vocabulary
    save_pretrained(tmp_path / "model", LSTMLanguageModel(config.model, len(vocabulary)), vocabulary, asdict(config.data))
    options = [f"--dataset={tmp_path}", "--tokens=700", "--turns=2", "--precision=fp32", "--threads=1", f"--cache_dir={tmp_path / 'cache'}"]
    result = Processes([str(SCRIPTS / "benchmark_protocols.py"), f"--model={tmp_path / 'model'}", *options], [os.environ]).wait()
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["threads"] == 1
    assert {"plain loop", "score, reset line", "static", "cache", "dynamic", "training, fp32"} <= figures["rows"].keys()
    for row in figures["rows"].values():
        assert len(row["seconds"]) == 2
        assert 600 < row["tokens"] <= 701
