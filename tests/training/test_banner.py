"""What a run tells at its end."""

import math
import shutil
import sys
from pathlib import Path

import pytest

from lstmlm.config import Config, DataConfig, TrainConfig
from lstmlm.training.banner import _proof, closing, resume_command, typed


@pytest.mark.parametrize(
    ("ppl", "shown"), [(1.764, "ours is less: the state is carried"), (2.5, "ours is not less, so it shows nothing")]
)
def test_the_toy_language_shows_whether_the_state_is_carried(ppl: float, shown: str) -> None:
    proof, ours, bound = _proof(Config(data=DataConfig(dataset="toy")), ppl).values()
    assert proof == "1.511 is the best possible test ppl"  # as README has them
    assert ours == f"{ppl:.3f}"
    assert bound.startswith("2.142 or more has any model whose state is reset")
    assert shown in bound


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(data=DataConfig(dataset="toy", level="char")),
        Config(data=DataConfig(dataset="toy", min_count=2)),
        Config(
            data=DataConfig(dataset="toy"), train=TrainConfig(init_from="runs/a")
        ),  # whose vocabulary may know no toy word
    ],
)
def test_other_tokens_show_nothing(config: Config) -> None:
    assert _proof(config, 1.0) == {}


OPTIONS = "--train.run_dir runs/a --train.resume true"


@pytest.mark.parametrize(
    ("program", "environment", "command"),
    [
        ("/usr/bin/lstmlm", {}, f"lstmlm train {OPTIONS}"),
        ("/site/lstmlm/__main__.py", {}, f"lstmlm train {OPTIONS}"),
        ("my train.py", {}, f"python 'my train.py' {OPTIONS}"),
        ("/site/ipykernel_launcher.py", {}, "the same call with train.run_dir runs/a and train.resume true"),
        (
            "scripts/train.py",
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
            f"accelerate launch --multi_gpu --num_machines 1 --num_processes 2 scripts/train.py {OPTIONS}",
        ),
        (
            "scripts/train.py",
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            f"the same command on every host with {OPTIONS}",
        ),
    ],
)
def test_the_hint_names_what_was_started(
    program: str, environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(shutil, "which", lambda name: f"{Path(sys.executable).parent}/{name}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resume_command("runs/a") == command


def test_a_hint_works_outside_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for python, shown in (
        (tmp_path / ".venv/bin/python", ".venv/bin/python"),
        (Path("/opt/a b/python"), "'/opt/a b/python'"),
    ):
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
