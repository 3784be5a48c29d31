"""What a run tells at its end."""

import math
import shutil
import sys
from pathlib import Path

import pytest

from lstmlm.config import Config
from lstmlm.training.banner import closing, resume_command, typed

OPTIONS = "--train.run_dir runs/a --train.resume true"


@pytest.mark.parametrize(
    ("program", "ranks", "command"),
    [
        ("/usr/bin/lstmlm", "", f"lstmlm train {OPTIONS}"),
        ("/site/lstmlm/__main__.py", "", f"lstmlm train {OPTIONS}"),
        ("my scripts/train.py", "", f"python 'my scripts/train.py' {OPTIONS}"),
        ("experiment.py", "", "the same call with train.run_dir runs/a and train.resume true"),
        ("/site/ipykernel_launcher.py", "", "the same call with train.run_dir runs/a and train.resume true"),
        ("scripts/train.py", "2", f"the same command (on every host) with {OPTIONS}"),
    ],
)
def test_the_hint_names_what_was_started(program: str, ranks: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(shutil, "which", lambda name: f"{Path(sys.executable).parent}/{name}")
    if ranks:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    assert resume_command("runs/a") == command


def test_a_hint_works_outside_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for python, shown in ((tmp_path / ".venv/bin/python", ".venv/bin/python"), (Path("/opt/a b/python"), "'/opt/a b/python'")):
        monkeypatch.setattr(sys, "executable", str(python))
        assert typed("lstmlm", "lstmlm") == f"{shown} -m lstmlm"
        assert typed("python") == shown


def test_a_run_without_a_finite_perplexity_ends_in_clear_lines() -> None:
    split = {"ppl": math.inf, "word_ppl": math.inf, "bpc": 900.0, "columns": 1}
    seconds = dict.fromkeys(("total", "training", "evaluation", "saving", "tracking"), 1.0)
    summary = {"best": None, "best_step": 0, "tokens": 9, "seconds": seconds, "valid": split, "test": split}
    lines = closing(Config(), summary, 10, Path("runs/a"))
    assert "best       validation ppl infinite while training" in lines
    assert lines[-1].startswith("result     test ppl infinite, validation ppl infinite (1 column)")
