"""A wheel holds every file that the package reads, and its model generates where nothing of the checkout is seen."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lstmlm.model.pretrained import BUNDLED
from tests.helpers import ROOT


def run(folder: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=os.environ | environment, timeout=250)
    assert result.returncode == 0, result.stderr
    return result


def test_a_wheel_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lstmlm", "models", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(tmp_path, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (entry,) = (name for name in held if name.endswith("entry_points.txt"))
        assert "lstmlm = lstmlm.cli:main" in archive.read(entry).decode()
        archive.extractall(tmp_path / "installed")
    needed = [path for path in (source / "lstmlm").rglob("*") if path.suffix in (".py", ".jinja", ".typed")]
    assert {path.relative_to(source).as_posix() for path in needed} <= held
    assert {f"lstmlm/models/{BUNDLED.name}/{path.name}" for path in BUNDLED.iterdir()} <= held
    assert {f"lstmlm/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= held
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "lstmlm", "generate", "--prompt", "Once upon a time", "--max_len", "5"]
    generated = run(tmp_path / "work", *command, PYTHONPATH=str(tmp_path / "installed"))
    assert "using the model that comes with lstmlm" in generated.stderr
    assert generated.stdout.startswith("Once upon a time ")
    preset = [sys.executable, "-m", "lstmlm", "train", "--config", "ptb", "--data.dataset=x", "--print_config"]
    assert "name: sgd" in run(tmp_path / "work", *preset, PYTHONPATH=str(tmp_path / "installed")).stdout
