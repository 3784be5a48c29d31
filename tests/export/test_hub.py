"""To the Hub and back, against a stand-in on loopback; in processes of their own, as the Hub's address is read once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lstmlm.model.pretrained import load, model_card
from tests.export.hub_standin import Repositories, standin
from tests.export.test_transformers import WORDS, make_model
from tests.helpers import ROOT

pytestmark = pytest.mark.system  # whole runs or processes

pytest.importorskip("transformers")


@pytest.fixture
def hub() -> Iterator[tuple[str, Repositories, dict[str, bool]]]:
    with standin() as server:
        yield server


def run(address: str, folder: Path, *words: str, token: str = "secret") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_TOKEN": token}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, cwd=folder)


def test_push_and_load_by_name(hub: tuple[str, Repositories, dict[str, bool]], tmp_path: Path) -> None:
    address, repositories, private = hub
    model = make_model(tmp_path / "own")
    figures = {"test": {"ppl": 12.5, "targets": 100, "columns": 1}}
    vocabulary = load(tmp_path / "own").vocabulary
    (tmp_path / "own/README.md").write_text(model_card(model, vocabulary, {"dataset": "toy"}, figures))
    export = str(ROOT / "scripts/export.py")
    pushed = run(address, tmp_path, export, "own", "--to", "hub", "--output", "me/small", "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert "/me/small/commit/" in pushed.stdout
    assert private == {"me/small": True}
    files = repositories["me/small"]
    assert {"config.json", "vocab.json", "model.safetensors", "README.md", "tokenizer.json", "modeling_lstmlm.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert [(r.dataset_split, r.metric_value) for r in card.data.eval_results] == [("test", 12.5)]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]

    code = """
import json, torch
from lstmlm import generate_text
from transformers import AutoModelForCausalLM
text = generate_text("w1", 5, 0, model="me/small")
theirs = AutoModelForCausalLM.from_pretrained("me/small", trust_remote_code=True)
print(json.dumps([text, theirs(torch.tensor([[1, 3]])).logits[0, -1].tolist()]))
"""
    loaded = run(address, tmp_path, "-c", code, token="")
    assert loaded.returncode == 0, loaded.stderr
    text, logits = json.loads(loaded.stdout.splitlines()[-1])
    assert text.split()[0] == "w1"
    assert len(logits) == len(WORDS)


def test_what_the_hub_refuses_is_one_line(hub: tuple[str, Repositories, dict[str, bool]], tmp_path: Path) -> None:
    address, repositories, _ = hub
    make_model(tmp_path / "own")
    export = str(ROOT / "scripts/export.py")
    refused = run(address, tmp_path, export, "own", "--to", "hub", "--output", "me/small", token="other")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: cannot push to me/small: ")
    assert "Traceback" not in refused.stderr
    assert repositories == {}
    generated = run(address, tmp_path, str(ROOT / "scripts/generate.py"), "--model", "me/absent")
    assert generated.returncode == 1
    assert "error: there is no model in me/absent, which is no folder here, nor on the Hub" in generated.stderr
    assert "Traceback" not in generated.stderr
