"""Downloads from a stand-in hub. Each runs in a new process, because huggingface_hub reads the address at import."""

import json
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

CODE = """
import json, sys
import stages.core.hub as hub
from stages.runtime import hub_errors
from stages.runtime.errors import UserError
hub.HUB_ANSWER_SECONDS = hub_errors.HUB_ANSWER_SECONDS = 2
try:
    print("FOLDER", hub.fetch(*json.loads(sys.argv[1])))
except UserError as error:
    sys.exit(f"MESSAGE {error}")
"""
BIG = bytes(range(256)) * 50_000  # 12.8 MB, because huggingface_hub keeps what it received in steps of 10 MB


@pytest.fixture
def fetch(hub, python_at):
    """fetch(patterns) → (the folder or None, everything that was printed)."""
    hub.files["models/owner/name"] = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"no"}

    def run(patterns=("config.json", "model*.safetensors"), kind="model", url=None, revision="c" * 40, **variables):
        section = "model" if kind == "model" else "data"
        arguments = json.dumps(["owner/name", revision, kind, list(patterns), section])
        done = python_at(url or hub.url, CODE, arguments, **variables)
        printed = done.stdout + done.stderr
        assert "Traceback" not in printed
        folder = re.search(r"^FOLDER (.+)$", done.stdout, re.MULTILINE)
        return (Path(folder[1]) if folder else None), printed

    return run


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_the_files_that_were_asked_for_are_fetched(fetch, hub):
    folder, _ = fetch()
    assert names(folder) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert sorted(hub.fetched()) == ["config.json", "model.safetensors"]


def test_a_data_set_comes_from_the_hubs_data_sets(fetch, hub):
    hub.files["datasets/owner/name"] = {"data/train-0.parquet": b"PAR1", "data/test-0.parquet": b"PAR1"}
    folder, _ = fetch(["*train*.parquet"], kind="dataset")
    assert names(folder) == ["data/train-0.parquet"]


def test_a_connection_that_breaks_is_resumed_where_it_broke(fetch, hub):
    hub.files["models/owner/name"]["model.safetensors"] = BIG
    hub.cut_at = 11_000_000
    folder, _ = fetch(["model.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert [span for *_, span in hub.requests if span] == ["bytes=10485760-"]


def test_a_second_download_fetches_only_what_is_new(fetch, hub):
    fetch(["config.json"])
    fetch()
    assert hub.fetched() == ["config.json", "model.safetensors"]


def test_files_in_the_cache_need_no_network(fetch, closed_port):
    first, _ = fetch()
    again, _ = fetch(url=closed_port)
    assert again == first


def test_a_cache_that_lacks_a_file_is_not_used(fetch, closed_port):
    folder, _ = fetch()
    (folder / "model.safetensors").unlink()
    again, printed = fetch(url=closed_port)
    assert again is None
    assert "the hub cannot be reached" in printed


def test_a_cache_without_the_list_of_files_is_not_used(fetch, closed_port):
    folder, _ = fetch(["config.json"])
    shutil.rmtree(folder.parents[1] / "trees")
    again, printed = fetch(url=closed_port)
    assert again is None
    assert "the hub cannot be reached" in printed


def test_a_hub_that_cannot_be_reached_gives_advice_within_seconds(fetch, closed_port):
    started = time.monotonic()
    _, printed = fetch(url=closed_port)
    assert time.monotonic() - started < 20
    assert "model.id owner/name at model.revision cccc" in printed
    for advice in ("network", "HTTPS_PROXY", "licence", "HF_TOKEN", "hf auth login", "`model.source: path`"):
        assert advice in printed
    _, printed = fetch(url=closed_port, kind="dataset")
    assert "data.id owner/name" in printed
    assert "`data.source: file`" in printed


@pytest.mark.slow
def test_a_silent_hub_is_given_up_after_seconds(fetch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        _, printed = fetch(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 20
    assert "the hub cannot be reached (ReadTimeout" in printed


def test_offline_mode_is_named(fetch):
    _, printed = fetch(HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in printed


def test_a_gated_repository_needs_its_licence_and_a_token(fetch, hub):
    hub.gated = True
    _, printed = fetch()
    assert "it is gated. Accept the licence on the model's page of the hub" in printed
    assert "HF_TOKEN or run `hf auth login`" in printed


def test_a_missing_repository_names_its_key(fetch, hub):
    hub.files.clear()
    _, printed = fetch()
    assert "the hub shows no such model. Correct model.id" in printed


def test_a_missing_commit_names_its_key(fetch):
    _, printed = fetch(revision="d" * 40)
    assert "the model has no such commit, branch or tag. Correct model.revision" in printed


@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_a_branch_is_refused_with_its_commit(fetch, hub, revision):
    folder, printed = fetch(revision=revision)
    assert folder is None
    assert f"MESSAGE model.id owner/name at model.revision {revision}: model.revision must be a full commit" in printed
    assert f"{revision} can move; it is now {hub.commit}. Set model.revision: {hub.commit}" in printed
    assert not hub.fetched()


@pytest.mark.parametrize("revision", ["nowhere", "C" * 40, "d" * 39])
def test_a_revision_that_is_neither_commit_nor_branch_is_refused(fetch, revision):
    _, printed = fetch(revision=revision)
    assert "model.revision must be a full commit of 40 hex digits" in printed
    assert "the model has no such commit, branch or tag. Correct model.revision" in printed


def test_a_branch_cannot_be_resolved_without_the_network(fetch, closed_port):
    fetch()  # the cache has the commit, but not that main is this commit
    _, printed = fetch(revision="main", kind="dataset", url=closed_port)
    assert "data.revision must be a full commit of 40 hex digits, and the hub did not say it" in printed
    assert "the hub cannot be reached" in printed
    _, printed = fetch(revision="main", HF_HUB_OFFLINE="1")
    assert "a full commit of 40 hex digits, and the hub cannot be asked for it, because HF_HUB_OFFLINE" in printed


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "the hub refuses it (HTTP 403). Accept the licence on the model's page of the hub, and check the token"),
        (503, "the hub answers HTTP 503. Try again later"),
    ],
)
def test_other_refusals_say_what_to_do(fetch, hub, status, message):
    hub.status = status
    assert message in fetch()[1]


def test_a_token_that_fits_in_no_header_is_not_printed(fetch):
    _, printed = fetch(HF_TOKEN="hf_TheTokenWithAnAccenté")
    assert "MESSAGE model.id owner/name" in printed


def test_a_pattern_that_matches_no_file_is_an_error(fetch):
    _, printed = fetch(["*.gguf"])
    assert "holds no file named like *.gguf" in printed
