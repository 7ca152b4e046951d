"""What several tests share: params from the tiny profile, and a stand-in for the hub on this machine."""

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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow.parquet
import pytest

from stages._tokenize.packing import row_schema
from stages.clean import clean
from stages.core.params import Clean, Params
from stages.core.records import SPLITS, Record, read_records, record_file, record_table
from stages.core.yaml_files import read_yaml
from stages.tokenize import BATCH_ROWS
from tests.pipeline import ALL, ROOT, Repository, make, running
from tests.uploads import Received, Uploads

TOKEN = "hf_ThisIsTheTokenThatNobodyMaySee"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On models this small several threads mostly wait for each other, the more so where the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The values that params.yaml comes with, whatever a user has set there."""
    return ROOT / "tests/params.yaml"


@pytest.fixture(scope="session")
def params_of(tiny) -> Callable[..., Params]:
    """params_of(model={"path": "x"}) is the tiny profile with model.path changed."""

    def build(**sections: dict | int) -> Params:
        values = read_yaml(tiny)
        for name, change in sections.items():
            values[name] = {**values[name], **change} if isinstance(change, dict) else change
        return Params.model_validate(values)

    return build


@pytest.fixture(scope="session")
def small_base(tmp_path_factory, params_of) -> Path:
    """models/base as download_model leaves it: a Mistral of 2 layers with random weights and the real vocabulary."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from stages.core.paths import write_json
    from stages.download_model import download_model

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32768,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.1,  # so that attention matters: a leak between packed conversations must show
    )
    MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "source", max_shard_size="3MB")
    base = folder / "models" / "base"
    base.mkdir(parents=True)
    params = params_of(model={"path": str(folder / "source")})
    write_json(base / "manifest.json", download_model(params.model, base))
    return base


@pytest.fixture(scope="session")
def made(tmp_path_factory, small_base) -> Callable[[str], Repository]:
    """made(name) is a fresh clone of the working tree, with a small model and 200 rows in it."""
    return lambda name: make(tmp_path_factory.mktemp(name) / "clone", small_base)


@pytest.fixture(scope="session")
def first_run(made) -> Repository:
    """A clone in which everything has run once, committed. Several files read it: change a clone of it.

    Model and data come from files, so it ran without the network; test_reliability.py looks at what tried to reach it.
    """
    repository = made("first")
    printed = repository.cut_off(repository.folder.parent / "attempts", "dvc", "repro")
    assert sorted(running(printed)) == sorted(ALL)
    repository.commit()
    return repository


@dataclass
class Hub:
    """Repositories, and how to misbehave. `files` is {"models/owner/name": {path: bytes}}; "files" are plain ones."""

    url: str = ""
    commit: str = "c" * 40
    refs: tuple[str, ...] = ("main", "refs/pr/1")  # other names of the commit
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    card: dict = field(default_factory=dict)  # what a model's card says, such as its licence
    status: int = 0  # answer this to everything
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
    """A hub on this machine, which speaks as much of the protocol as huggingface_hub uses for downloads and uploads."""
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
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def python_at(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """python_at(url, code, *arguments) runs code that sees the hub at `url`, a cache of its own and a token."""

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


def write_records(path, records):
    with record_file(path) as file:
        file.write_table(record_table(records))


def write_rows(path, rows: list[dict]) -> None:
    """A file of data/tokenized, in batches as the stage writes them."""
    with pyarrow.ipc.new_stream(path, row_schema()) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            writer.write(pyarrow.RecordBatch.from_pylist(rows[start : start + BATCH_ROWS], row_schema()))


class Rejected(NamedTuple):
    record: Record
    reason: str
    detail: str


@dataclass(frozen=True)
class Cleaned:
    """What the stage `clean` makes of some rows, read back from its files."""

    splits: dict[str, list[Record]]
    rejected: list[Rejected]
    metrics: dict


def write_raw(rows: list[dict], folder: Path, shard_rows: int = 10_000) -> list[Path]:
    """Lines of data/raw as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        shards.append(folder / f"rows-{number:05}.jsonl")
        shards[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[start : start + shard_rows]))
    return shards


def clean_rows(rows: list[dict], section: Clean, layout: str = "prompt-completion", **options) -> Cleaned:
    """The options are those of write_raw, and how many workers there are."""
    workers = options.pop("workers", 1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_raw(rows, folder / "raw", **options)
        tally = clean(shards, section, {"format": layout, "columns": None}, folder, workers)
        splits = {
            split: [record for some in read_records(folder / f"{split}.parquet") for record in some] for split in SPLITS
        }
        gone = pyarrow.parquet.read_table(folder / "rejected.parquet").to_pylist()
    rejected = [
        Rejected(Record(row["id"], row["messages"], row["source"]), row["reason"], row["detail"]) for row in gone
    ]
    return Cleaned(splits, rejected, tally.metrics())
