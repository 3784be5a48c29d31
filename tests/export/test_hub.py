"""To the Hub and back, against a stand-in on loopback; in processes of their own, as the Hub's address is read once."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import ModelCard

from lstmlm.model.pretrained import load, model_card
from tests.export.test_transformers import make_model
from tests.helpers import WORDS

pytestmark = pytest.mark.system  # whole runs or processes

pytest.importorskip("transformers")


class Hub(ThreadingHTTPServer):
    """The part of the Hub's interface that model repositories need: create, commit, look up, download; who writes must be `secret`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}  # name -> path -> content
        self.private: dict[str, bool] = {}

    def commit(self, name: str) -> str:
        return _hash(b"".join(path.encode() + content for path, content in sorted(self.repositories[name].items())))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, repositories = unquote(urlparse(self.path).path), self.server.repositories
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
            repositories.setdefault(name, {})
            self.server.private.setdefault(name, bool(wanted.get("private") or wanted.get("visibility") == "private"))
            self.answer(200, {"url": f"http://127.0.0.1/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repositories[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.server.commit(match[1])
            self.answer(200, {"commitUrl": f"http://127.0.0.1/{match[1]}/commit/{commit}", "commitOid": commit})
        else:
            self.answer(404)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?|/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        name = match and (match[1] or match[3])
        if not match or name not in self.server.repositories:
            self.answer(404, X_Error_Code="RepoNotFound")
            return
        files, commit = self.server.repositories[name], self.server.commit(name)
        if match[2] == "tree":
            self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": _hash(c)} for p, c in files.items()])
        elif not match[4]:
            siblings = [{"rfilename": file} for file in files]
            self.answer(200, {"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif match[4] in files:
            self.answer(200, files[match[4]], ETag=f'"{_hash(files[match[4]])}"', X_Repo_Commit=commit)
        else:
            self.answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(hub: Hub, folder: Path, *words: str, token: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf"), "HF_TOKEN": token}
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=200, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_push_and_load_by_name(hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "own")
    figures = {"test": {"ppl": 12.5, "targets": 100, "columns": 1}}
    vocabulary = load(tmp_path / "own").vocabulary
    (tmp_path / "own/README.md").write_text(model_card(model, vocabulary, {"dataset": "toy"}, figures))
    pushed = run(hub, tmp_path, "-m", "lstmlm", "export", "own", "--to", "hub", "--output", "me/small", "--private", token="secret")
    assert "/me/small/commit/" in pushed
    assert hub.private == {"me/small": True}
    files = hub.repositories["me/small"]
    assert {"config.json", "vocab.json", "model.safetensors", "README.md", "tokenizer.json", "modeling_lstmlm.py"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert [(r.dataset_split, r.metric_value) for r in card.data.eval_results] == [("test", 12.5)]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]

    code = """
import json, torch
from lstmlm import cli, generate_text
from transformers import AutoModelForCausalLM
from lstmlm.console import UserError
text = generate_text("w1", 5, 0, model="me/small")
theirs = AutoModelForCausalLM.from_pretrained("me/small", trust_remote_code=True)
refused = []
for command, arguments in ((cli.export, ["own", "--to", "hub", "--output", "me/other"]), (cli.generate, ["--model", "me/absent"])):
    try:
        command(arguments)
    except UserError as error:
        refused.append(str(error))
print(json.dumps([text, theirs(torch.tensor([[1, 3]])).logits[0, -1].tolist(), refused]))
"""
    text, logits, (no_push, absent) = json.loads(run(hub, tmp_path, "-c", code, token="other").splitlines()[-1])
    assert text.split()[0] == "w1"
    assert len(logits) == len(WORDS)
    assert no_push.startswith("cannot push to me/other: ")
    assert "\n" not in no_push
    assert hub.repositories.keys() == {"me/small"}
    assert absent.startswith("there is no model in me/absent, which is no folder here, nor on the Hub")
