"""The part of the Hub's interface that model repositories need, on loopback: create, commit, look up, download."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

Repositories = dict[str, dict[str, bytes]]  # name -> path -> content


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories
    private: dict[str, bool]

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

    def missing(self, code: str) -> None:
        self.answer(404, {"error": "not found"}, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
            self.repositories.setdefault(name, {})
            self.private.setdefault(name, bool(wanted.get("private") or wanted.get("visibility") == "private"))
            self.answer(200, {"url": f"http://127.0.0.1/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[match[1]][line["value"]["path"]] = content
            commit = self.commit(match[1])
            self.answer(200, {"commitUrl": f"http://127.0.0.1/{match[1]}/commit/{commit}", "commitOid": commit})
        else:
            self.missing("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?|/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        name = match and (match[1] or match[3])
        if not match or name not in self.repositories:
            self.missing("RepoNotFound")
            return
        files = self.repositories[name]
        if match[4]:
            if match[4] in files:
                headers = {"ETag": f'"{_hash(files[match[4]])}"', "X_Repo_Commit": self.commit(name)}
                self.answer(200, files[match[4]], **headers)
            else:
                self.missing("EntryNotFound")
        elif match[2] == "tree":
            rows = [{"type": "file", "path": p, "size": len(c), "oid": _hash(c)} for p, c in files.items()]
            self.answer(200, rows)
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer(200, {"id": name, "sha": self.commit(name), "private": False, "tags": [], "siblings": siblings})

    def commit(self, name: str) -> str:
        return _hash(b"".join(path.encode() + content for path, content in sorted(self.repositories[name].items())))


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def standin() -> Iterator[tuple[str, Repositories, dict[str, bool]]]:
    """Its address, and the repositories that it holds; who pushes must be `secret`."""

    class Own(Handler):
        repositories: Repositories = {}  # noqa: RUF012
        private: dict[str, bool] = {}  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", Own.repositories, Own.private
    finally:
        server.shutdown()
        server.server_close()
