"""A stand-in for the hub on this machine: the parts of its protocol that downloads and uploads use."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from tests.support.project import ROOT
from tests.support.uploads import Received, Uploads

TOKEN = "hf_ThisIsTheTokenThatNobodyMaySee"


@dataclass
class Hub:
    """The repositories, and the faults of the server.

    `files` is {"models/owner/name": {path: bytes}}. Under "files" are those of a plain web server.
    """

    url: str = ""
    commit: str = "c" * 40
    refs: tuple[str, ...] = ("main", "refs/pr/1")  # other names of the commit
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    card: dict = field(default_factory=dict)  # what a model's card says, such as its licence
    status: int = 0  # answer this to everything
    redirects: dict[str, str] = field(default_factory=dict)  # {path under /files/: the address that it leads to}
    cut_at: int = 0  # close the connection once after so many bytes of a file
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    received: Received = field(default_factory=Received)

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class HubHandler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if 0 < self.hub.cut_at < len(body):
            body, self.hub.cut_at = body[: self.hub.cut_at], 0
            self.close_connection = True
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if target := self.hub.redirects.get(path.removeprefix("/files/")):
            return self.redirect(target)
        if path.startswith("/files/"):
            return self.plain(self.hub.files["files"].get(path.removeprefix("/files/")))
        if model := re.fullmatch("/api/models/([^/]+/[^/]+)", path):
            return self.of_model(model[1])
        return self.of_repository(path)

    do_HEAD = do_GET  # noqa: N815 http.server looks the method up by this name

    def of_repository(self, path: str) -> None:
        hub = self.hub
        api = re.fullmatch(r"/api/(models|datasets)/(.+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not (api or file):
            return self.refuse(404, "")
        kind, revision = (api[1], api[4]) if api else (file[1] or "models/", file[3])
        repository = hub.files.get(f"{kind.strip('/')}/{(api or file)[2]}")
        if hub.status:
            return self.refuse(hub.status, "")
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        if revision != hub.commit and not (api and api[3] == "revision" and unquote(revision) in hub.refs):
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.answer(self.listing(api, repository), {"Content-Type": "application/json"})
        return self.refuse(403, "GatedRepo") if hub.gated else self.content(repository[file[4]])

    def listing(self, api: re.Match, repository: dict[str, bytes]) -> bytes:
        if api[3] == "revision":
            return json.dumps(
                {"id": api[2], "sha": self.hub.commit, "siblings": [], "cardData": self.hub.card}
            ).encode()
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in repository.items()
        ]
        return json.dumps(tree).encode()

    def plain(self, content: bytes | None) -> None:
        """A file as any web server gives it."""
        if self.hub.status or content is None:
            return self.refuse(self.hub.status or 404, "")
        return self.content(content)

    def content(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not span or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            return self.answer(content, headers)
        if int(span[1]) >= len(content):
            return self.refuse(416, "")
        headers["Content-Range"] = f"bytes {span[1]}-{len(content) - 1}/{len(content)}"
        return self.answer(content[int(span[1]) :], headers, 206)


@pytest.fixture
def hub():
    """A hub on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def closed_port():
    """An address at which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def python_at(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """python_at(url, code, *arguments) runs code with the hub at `url`, its own cache and a token."""

    def run(url: str, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if not re.match(r"(?i)hf_|hugging|.*_proxy", name)}
        environment = {
            **kept,
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert TOKEN[:20] not in done.stdout + done.stderr
        return done

    return run
