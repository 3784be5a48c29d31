"""The smoke run as users start it proves that the state is carried: it beats what any model with a reset state can reach."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstmlm import LSTMLanguageModel, Vocabulary
from lstmlm.config import DataConfig
from lstmlm.data import toy
from lstmlm.data.corpus import load_split
from lstmlm.data.table import Table
from lstmlm.evaluation.perplexity import evaluate_stream
from lstmlm.model.pretrained import load
from tests.system.launcher import ROOT

BPTT = 30


@torch.no_grad()
def reset_ppl(model: LSTMLanguageModel, stream: torch.Tensor) -> float:
    """Perplexity where every segment begins with the zero state."""
    table = Table(stream, 1)
    nll = 0.0
    for window in table.windows(BPTT):
        inputs, targets = table.segment(*window.segments[0])
        nll += model(inputs, model.initial_state(1), targets)[0].item()
    return math.exp(nll / table.num_targets)


def smoke_run(folder: Path) -> tuple[Path, str]:
    """A finished smoke run, and what it said: the one that LSTMLM_SMOKE names, with a file of that name and `.log`; or one made here."""
    if named := os.environ.get("LSTMLM_SMOKE"):
        return Path(named), Path(f"{named}.log").read_text()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    command = [*launcher, "--config_file", str(ROOT / "configs/accelerate/cpu.yaml"), str(ROOT / "scripts/train.py")]
    arguments = ["--config", str(ROOT / "configs/smoke.yaml"), f"--train.run_dir={folder / 'run'}", f"--data.cache_dir={folder}"]
    arguments.append("--train.threads=1")  # other tests run beside it
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)  # seconds: a busy machine needs them
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stderr


@pytest.mark.timeout(700)
def test_carried_state_beats_the_bound_of_a_reset_one(tmp_path: Path) -> None:
    run, told = smoke_run(tmp_path)
    vocabulary = Vocabulary.load(run / "model/vocab.json")
    model = load(run).model
    stream, _ = load_split(DataConfig(dataset="toy", cache_dir=str(tmp_path)), "test", vocabulary)
    text = toy.split_text("test")
    oracle, bound = text.oracle_ppl(), text.reset_ppl(BPTT)
    carried, reset = evaluate_stream(model, stream).ppl, reset_ppl(model, stream)
    print(f"oracle {oracle:.3f}, carried {carried:.3f}, bound for a reset state {bound:.3f}, reset {reset:.3f}")
    assert oracle < carried < bound < reset
    lines = told.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("proof"))
    figures = [float(line.split()[1]) for line in lines[begin : begin + 3]]
    assert figures == pytest.approx([oracle, carried, bound], abs=2e-3)  # of other threads, to three digits
    assert lines[begin + 2].endswith("ours is less: the state is carried")
    assert "The following values were not passed" not in told, "Accelerate's warnings"
