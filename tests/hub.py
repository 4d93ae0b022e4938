"""A local server with as much of the Hugging Face hub's API as pushing and loading a model needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

TOKEN = "hf_" + "t" * 20


@dataclass
class Hub:
    """The repositories of the server: their files, and which of them are private."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256, which belong to no commit yet."""
    address: str = ""

    def commit(self, repo: str) -> str:
        """The revision of the files as they are."""
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in self.files[repo].items()})
        return hashlib.sha1(content.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._answer(404, b"{}", X_Error_Code=code)

    @property
    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path):
            self._describe(found[1])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.*", path):
            self._json([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.hub.files[found[1]]])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            self._file(found[1], found[2])
        else:
            self._missing("RepoNotFound")

    def _visible(self, repo: str) -> bool:
        return repo in self.hub.files and (repo not in self.hub.private or self._may_write)

    def _describe(self, repo: str) -> None:
        if not self._visible(repo):
            return self._missing("RepoNotFound")
        names = [{"rfilename": name} for name in self.hub.files[repo]]
        return self._json({"id": repo, "sha": self.hub.commit(repo), "siblings": names, "private": False})

    def _file(self, repo: str, name: str) -> None:
        if not self._visible(repo):
            return self._missing("RepoNotFound")
        data = self.hub.files[repo].get(name)
        if data is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.hub.commit(repo))
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self._answer(200, data, X_Repo_Commit=self.hub.commit(repo), ETag=etag)

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer(200)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if not self._may_write:
            return self._answer(403, b'{"error": "forbidden"}')
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.files:
                return self._answer(409, json.dumps({"url": f"{self.hub.address}/{repo}"}).encode())
            self.hub.files[repo] = {".gitattributes": b""}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repo)
            return self._json({"url": f"{self.hub.address}/{repo}", "id": repo})
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            problems = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no mapping"}]
            return self._json({"errors": problems, "warnings": []})
        if path.startswith("/api/models/") and "/preupload/" in path:
            modes = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            upload = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.address}/objects/{entry['oid']}"}}}
                for entry in asked
            ]
            return self._json({"transfer": "basic", "objects": upload})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/\w+", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self._missing("RepoNotFound")

    def _commit(self, repo: str, entries: list[dict[str, Any]]) -> None:
        files = self.hub.files[repo]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.commit(repo)
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""})


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """The hub that huggingface_hub speaks to inside, with an empty cache, and a token that may write."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
