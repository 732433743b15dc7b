"""A hub on 127.0.0.1 that speaks as much of the Hub's HTTP as its own client libraries ask for.

Repositories are commits of files, each a mapping of paths to bytes. A test points a process to it
with `FakeHub.environment`, whose caches are folders of the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.launch import End

_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?"
)
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(kw_only=True)
class Repository:
    """One model or dataset: its commits, and where its branches stand."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    """Only `TOKEN` may read it."""
    drops: dict[str, int] = field(default_factory=dict)
    """After how many bytes the connection breaks off, by file; each once."""


TOKEN = "hf_" + "a" * 34


@dataclass(kw_only=True)
class FakeHub:
    """What the server serves, and what it was asked for."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    url: str = ""

    def commit(
        self, kind: str, name: str, files: Mapping[str, bytes] | Path, *, branch: str = "main"
    ) -> str:
        """Adds a commit to a repository and moves a branch to it; returns the commit's hash.

        Args:
            kind: `model` or `dataset`.
            name: `owner/name`.
            files: All files of the commit, or a folder that holds them.
            branch: The branch that moves.
        """
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        repository = self.repositories.setdefault((kind, name), Repository())
        text = repr((len(repository.commits), kind, name, sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def head(self, kind: str, name: str) -> str:
        """Returns where the main branch stands."""
        return self.repositories[kind, name].branches["main"]

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Returns the variables of a process that knows this hub alone, its caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            **variables,
        }


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Runs a hub, with no repositories yet, until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Desk:
    """A user's folder with a run file, and `sailplan` there."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder, self.hub = folder, hub
        self.out = folder / "out"
        self.write()

    def write(self, **values: Any) -> None:
        run = {
            "model_name_or_path": "owner/tiny",
            "dataset_name": "owner/chats",
            "output_dir": "out",
            "max_steps": 2,
            "report_to": "none",
            "launch": {"cpu": True},
            **values,
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(run))

    def __call__(
        self,
        *arguments: str,
        module: str = "sailplan",
        before: Callable[[], None] | None = None,
        **variables: str,
    ) -> End:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.folder,
            preexec_fn=before,
            env={**os.environ, **self.hub.environment(self.folder / "home"), **variables},
        )
        return End(done.returncode, done.stdout, done.stderr)

    @property
    def pins(self) -> dict[str, str]:
        rows = json.loads((self.out / "revisions.json").read_text())
        return {row["name"]: row["commit"] for row in rows}


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        url = urlsplit(self.path)
        path = unquote(url.path)
        try:
            if path == "/api/whoami-v2":
                self._refuse_strangers()
                self._send_json({"name": "tester", "type": "user", "auth": {}})
            elif match := _API.fullmatch(path):
                self._api(*match.groups(), parse_qs(url.query), body)
            elif match := _RESOLVE.fullmatch(path):
                self._resolve(*match.groups())
            else:
                raise _RefusedError(404, "")
        except _RefusedError as refused:
            self._send(refused.status, b"", {"X-Error-Code": refused.code} if refused.code else {})

    def _refuse_strangers(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(401, "")

    def _files(
        self, kind: str, name: str, revision: str
    ) -> tuple[Repository, str, dict[str, bytes]]:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:  # private ones look the same from outside
            raise _RefusedError(401, "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return repository, commit, repository.commits[commit]

    def _api(
        self,
        kinds: str,
        name: str,
        what: str | None,
        revision: str | None,
        below: str | None,
        query: dict[str, list[str]],
        body: str,
    ) -> None:
        _, commit, files = self._files(kinds.removesuffix("s"), name, revision or "main")
        if what in (None, "revision"):
            siblings = [
                {"rfilename": path, **({"size": len(files[path])} if "blobs" in query else {})}
                for path in sorted(files)
            ]
            repository = self.hub.repositories[kinds.removesuffix("s"), name]
            answer: Any = {"id": name, "sha": commit, "siblings": siblings, "tags": []}
            answer |= {"private": False, "gated": "auto" if repository.gated else False}
        elif what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            answer = _entries(files, (below or "").strip("/"), recursive=recursive)
        else:
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            known = {entry["path"]: entry for entry in _entries(files, "", recursive=True)}
            answer = [known[path] for path in asked if path in known]
        self._send_json(answer)

    def _resolve(self, dataset: str | None, name: str, revision: str, path: str) -> None:
        kind = "dataset" if dataset else "model"
        repository, commit, files = self._files(kind, name, revision)
        if repository.gated:
            token = self.headers.get("Authorization")
            if token != f"Bearer {TOKEN}":
                raise _RefusedError(403 if token else 401, "GatedRepo")
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content, start = files[path], 0
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = repository.drops.pop(path, None) if self.command == "GET" else None
        self._send(206 if asked else 200, content[start:], headers, stop=stop)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, stop: int | None = None
    ) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True


def _entries(files: Mapping[str, bytes], below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Lists files and folders as the Hub's tree does."""
    prefix = f"{below}/" if below else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    if below and not inside:
        raise _RefusedError(404, "EntryNotFound")
    found: dict[str, dict[str, Any]] = {}
    for path, content in sorted(inside.items()):
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            found.setdefault(
                folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            )
            if not recursive:
                break
        if recursive or len(parts) == 1:
            digest = hashlib.sha1(content).hexdigest()
            found[path] = {"type": "file", "path": path, "oid": digest, "size": len(content)}
    return list(found.values())
