"""To the Hub, with a stand-in for the two calls of its client; and by name from the Hub's cache, which a process reads once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from huggingface_hub import HfApi, ModelCard

from lstmlm import UserError, cli
from lstmlm.model.pretrained import load, model_card
from tests.export.test_transformers import WORDS, make_model

pytestmark = pytest.mark.system  # whole runs or processes

pytest.importorskip("transformers")
COMMIT = "a" * 40


def test_push_and_load_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "own")
    figures = {"test": {"ppl": 12.5, "targets": 100, "columns": 1}}
    (tmp_path / "own/README.md").write_text(model_card(model, load(tmp_path / "own").vocabulary, {"dataset": "toy"}, figures))
    cached = tmp_path / "hf/hub/models--me--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(COMMIT)

    def upload(api: HfApi, *, folder_path: str, **others: Any) -> SimpleNamespace:
        shutil.copytree(folder_path, cached / "snapshots" / COMMIT)
        return SimpleNamespace(commit_url=f"https://hub/{others['repo_id']}/commit/{COMMIT}")

    push = [str(tmp_path / "own"), "--to", "hub", "--output"]
    with (
        patch.object(HfApi, "create_repo", autospec=True, side_effect=[None, OSError("401:\nwho are you?")]) as create,
        patch.object(HfApi, "upload_folder", autospec=True, side_effect=upload),
    ):
        assert cli.export([*push, "me/small", "--private"]) == 0
        assert create.call_args.args[1:] == ("me/small",)
        assert create.call_args.kwargs == {"private": True, "exist_ok": True}
        assert f"/me/small/commit/{COMMIT}" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"cannot push to me/other: 401: who are you\?"):
            cli.export([*push, "me/other"])
    files = {path.name: path.read_bytes() for path in (cached / "snapshots" / COMMIT).iterdir()}
    assert {"config.json", "vocab.json", "model.safetensors", "README.md", "tokenizer.json", "modeling_lstmlm.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert [(r.dataset_split, r.metric_value) for r in card.data.eval_results] == [("test", 12.5)]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]

    code = """
import json, torch
from lstmlm import UserError, generate_text
from transformers import AutoModelForCausalLM
text = generate_text("w1", 5, 0, model="me/small")
theirs = AutoModelForCausalLM.from_pretrained("me/small", trust_remote_code=True)
try:
    generate_text("w1", model="me/absent")
except UserError as error:
    print(json.dumps([text, theirs(torch.tensor([[1, 3]])).logits[0, -1].tolist(), str(error)]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text, logits, absent = json.loads(result.stdout)
    assert text.split()[0] == "w1"
    assert len(logits) == len(WORDS)
    assert absent.startswith("there is no model in me/absent, which is no folder here, nor on the Hub")
