"""A wheel, installed where nothing of the checkout is seen: the command, a short run, generation."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lstmlm.model.pretrained import BUNDLED
from tests.helpers import ROOT, Small


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=250)
    assert result.returncode == 0, result.stderr
    return result


def test_a_wheel_trains_and_generates(tmp_path: Path, small: Small) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lstmlm", "models"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(tmp_path, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(tmp_path, *pip, "--python", python, "install", "-q", "--no-deps", wheel)
    (installed,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # The dependencies, but nothing that site-packages' own .pth files point to: not the checkout.
    (installed / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    work = tmp_path / "work"
    work.mkdir()
    lstmlm = tmp_path / "venv/bin/lstmlm"
    where = run(work, python, "-c", "import lstmlm; print(lstmlm.__file__)").stdout
    assert where.startswith(str(installed))
    assert "export" in run(work, lstmlm, "--help").stdout
    if BUNDLED.exists():
        generated = run(work, lstmlm, "generate", "--prompt", "Once upon a time", "--max_len", "5")
        assert "using the model that comes with lstmlm" in generated.stderr
        assert generated.stdout.startswith("Once upon a time ")
    code = """
import sys
from lstmlm import generate_text, load_config, train
run = train(load_config(sys.argv[1:]))
print(generate_text("w1", 5, model=run.run_dir))
"""
    assert run(work, python, "-c", code, *small("--train.max_steps=2")).stdout.startswith("w1 ")
