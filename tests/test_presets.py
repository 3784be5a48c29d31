"""Every preset in configs/ loads, and its recipe trains, at small sizes."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lstmlm import Config, LSTMLanguageModel, load_config
from lstmlm.config import DataConfig
from tests.helpers import build_step, run_steps

FOLDER = Path(__file__).parent.parent / "configs"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains(name: str, small_config: Callable[..., Config]) -> None:
    path = FOLDER / f"{name}.yaml"
    assert f"--config configs/{name}.yaml" in path.read_text().split("\n")[0]
    small, config = small_config("--train.log_every=100"), load_config(["--config", str(path)])
    assert config == load_config(["--config", name]) == load_config([f"--config={name}"])
    model = dataclasses.replace(config.model, embedding_size=8, hidden_size=12)
    data = dataclasses.replace(small.data, bptt_jitter=2.5 * bool(config.data.bptt_jitter))
    train_step = build_step(dataclasses.replace(config, model=model, data=data, train=small.train))
    losses = run_steps(train_step, train_step.steps_per_epoch + 1)
    assert len(losses) == train_step.steps_per_epoch
    assert all(math.isfinite(loss) and loss < 1.5 * losses[0] for loss in losses)


def test_a_file_goes_before_the_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text("data: {bptt: 7}\n")
    assert load_config(["--config", "smoke"]).data == DataConfig(bptt=7)
    Path("ptb").mkdir()  # its text
    assert load_config(["--config", "ptb", "--data.dataset", "ptb"]) == load_config(
        ["--config", str(FOLDER / "ptb.yaml"), "--data.dataset=ptb"]
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if re.search(r"\d M parameters", (FOLDER / f"{name}.yaml").read_text())])
def test_a_preset_has_the_parameters_that_its_first_lines_tell(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    told = re.findall(r"([\d.]+) M parameters", path.read_text())
    types = 10_000 if name == "ptb" else 33_278
    with torch.device("meta"):
        parameters = LSTMLanguageModel(load_config(["--config", str(path)]).model, types).num_parameters
    assert [float(number) for number in told] == [pytest.approx(parameters / 1e6, rel=0.02)]
