"""A data file from the web is resumed after a break, and used only with the sha256 in params.yaml."""

import gzip
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from stages import download_data
from stages._download_data import url as web
from stages.core.paths import RAW
from stages.runtime.errors import UserError

ROWS = b"".join(json.dumps({"prompt": f"p{n}", "completion": "c" * 90}).encode() + b"\n" for n in range(20_000))
SHA = hashlib.sha256(ROWS).hexdigest()


@pytest.fixture
def run(tmp_path, monkeypatch, params_of, hub):
    """run(**changes to the section `data`) → the sources of the rows, with rows.jsonl on the stand-in server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in [name for name in os.environ if re.fullmatch(r"(?i).*_proxy", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 2)
    monkeypatch.setattr(web, "SILENT_SECONDS", 2)
    hub.files["files"] = {"rows.jsonl": ROWS}

    def build(**changes):
        data = {"source": "url", "url": f"{hub.url}/files/rows.jsonl", "sha256": SHA, "limit": None, **changes}
        download_data.main(params_of(data=data))
        lines = (line for shard in sorted(RAW.glob("rows-*.jsonl")) for line in shard.read_text().splitlines())
        return [json.loads(line)["source"] for line in lines]

    return build


def refusal(run, **changes) -> str:
    with pytest.raises(UserError) as caught:
        run(**changes)
    assert not RAW.exists()
    return str(caught.value)


def kept() -> list[str]:
    return sorted(path.name for path in web.downloads().iterdir())


def test_a_url_gives_the_rows_of_its_file(run, hub):
    assert run() == [f"rows.jsonl:{n}" for n in range(1, 20_001)]
    assert kept() == [f"{SHA}.jsonl"], "no part is left"


def test_the_ending_of_the_address_says_how_a_file_is_compressed(run, hub):
    packed = gzip.compress(ROWS, mtime=0)
    hub.files["files"]["rows.JSONL.gz"] = packed
    sources = run(url=f"{hub.url}/files/rows.JSONL.gz?version=2", sha256=hashlib.sha256(packed).hexdigest())
    assert sources[:1] == ["rows.JSONL.gz:1"]


def test_a_second_run_needs_no_network(run, hub):
    run()
    asked = len(hub.requests)
    run()
    assert len(hub.requests) == asked


def test_a_damaged_file_in_the_cache_is_fetched_again(run, hub):
    run()
    (web.downloads() / f"{SHA}.jsonl").write_bytes(ROWS[:-1])
    assert len(run()) == 20_000
    assert len(hub.requests) == 2


def test_a_broken_connection_is_resumed_where_it_broke(run, hub):
    hub.cut_at = 700_000
    assert len(run()) == 20_000
    spans = [span for *_, span in hub.requests]
    assert spans[0] is None
    assert len(spans) == 2
    assert 0 < int(spans[1].removeprefix("bytes=").removesuffix("-")) <= 700_000


def test_a_later_run_continues_where_an_earlier_one_broke_off(run, hub, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.cut_at = 700_000
    text = refusal(run)
    assert "the download broke off (RemoteProtocolError). Run it again: it continues from there" in text
    assert len(kept()) == 2
    assert len(run()) == 20_000
    assert hub.requests[1][2] is not None


def test_a_file_that_changed_between_two_runs_is_fetched_whole(run, hub, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.files["files"]["rows.jsonl"] = ROWS.replace(b"p1", b"q1")
    hub.cut_at = 700_000
    refusal(run)
    hub.files["files"]["rows.jsonl"] = ROWS
    assert len(run()) == 20_000


def test_a_part_as_long_as_the_file_is_fetched_again(run, hub, monkeypatch):
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    hub.cut_at = 700_000
    refusal(run)
    next(web.downloads().glob("*.partial")).write_bytes(b"x" * len(ROWS))
    assert len(run()) == 20_000


@pytest.mark.parametrize("before", [None, "0" * 64])
def test_a_missing_or_wrong_sha256_is_refused_with_the_right_one(run, hub, before):
    text = refusal(run, sha256=before)
    assert f"data.sha256 is {before or 'not set'}, but the file that came has {SHA}. Look at " in text
    assert text.endswith(f"set data.sha256: {SHA}")
    looked_at = re.search(r"Look at (\S+);", text)[1]
    assert Path(looked_at).read_bytes() == ROWS
    assert len(run()) == 20_000
    assert len(hub.requests) == 1, "what was looked at is what is used: it is not fetched again"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "nothing is there (HTTP 404). Correct data.url"),
        (401, "the server refuses it (HTTP 401): it may ask for a login. With one, download it by hand, and name"),
        (403, "the server refuses it (HTTP 403)"),
        (407, "the proxy refuses it. Check HTTPS_PROXY and HTTP_PROXY"),
        (503, "the server answers HTTP 503. Try again later"),
        (418, "the server answers HTTP 418. Correct data.url"),
    ],
)
def test_a_refusal_says_what_to_do(run, hub, status, message):
    hub.status = status
    text = refusal(run, url=f"{hub.url}/files/rows.jsonl?who=me")
    assert text.startswith(f"data.url {hub.url}/files/rows.jsonl: ")
    assert message in text
    assert "who=me" not in text
    assert len(hub.requests) == 1


def test_a_server_that_cannot_be_reached_gives_advice(run, closed_port):
    text = refusal(run, url=f"{closed_port}/rows.jsonl")
    assert "the server cannot be reached (ConnectError: " in text
    assert "Check the network and HTTPS_PROXY and HTTP_PROXY, or download it by hand" in text


def test_a_refusing_proxy_is_named_without_its_password(run, hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", hub.url.replace("//", "//me:hunter2@"))
    text = refusal(run, url="https://example.invalid/rows.jsonl")
    assert "the proxy refuses it. Check HTTPS_PROXY and HTTP_PROXY" in text
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://me:hunter2@host")
    text += refusal(run, url="https://example.invalid/rows.jsonl")
    assert "no request can be sent. Correct data.url, and check HTTPS_PROXY and HTTP_PROXY" in text
    assert "hunter2" not in text


def test_a_silent_server_is_given_up_after_seconds(run):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        text = refusal(run, url=f"http://127.0.0.1:{silent.getsockname()[1]}/rows.jsonl")
    assert time.monotonic() - started < 10
    assert "broke off (ReadTimeout)" in text


@pytest.fixture
def slow_server():
    """slow_server(pieces) → the address of a server that sends the pieces to each client, one every 0.1 s."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve(pieces: tuple[bytes, ...]) -> None:
            while True:
                try:
                    client = listening.accept()[0]
                    client.recv(1 << 16)
                    for piece in pieces:
                        client.sendall(piece)
                        time.sleep(0.1)
                    client.close()
                except OSError:
                    if listening.fileno() < 0:
                        return

        def start(*pieces: bytes) -> str:
            threading.Thread(target=serve, args=(pieces,), daemon=True).start()
            return f"http://127.0.0.1:{listening.getsockname()[1]}/rows.jsonl"

        yield start


HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(ROWS)}\r\n\r\n".encode()


def test_a_server_that_sends_a_byte_at_a_time_is_given_up(run, monkeypatch, slow_server):
    monkeypatch.setattr(web, "SLOW_SECONDS", 1)
    started = time.monotonic()
    text = refusal(run, url=slow_server(HEAD, *(ROWS[n : n + 1] for n in range(300))))
    assert time.monotonic() - started < 8
    assert "the server sent less than 1000 bytes a second for 1 seconds. Run it again: it continues from there" in text
    assert ROWS.startswith(next(web.downloads().glob("*.partial")).read_bytes()), "what came is kept"


@pytest.mark.parametrize("status", ["200 OK", "302 Found"])
def test_a_server_whose_answer_begins_a_byte_at_a_time_is_given_up(run, monkeypatch, slow_server, status):
    monkeypatch.setattr(web, "HEADER_SECONDS", 1)
    head = f"HTTP/1.1 {status}\r\nLocation: /other.jsonl\r\nX-Long: {'x' * 300}".encode()
    started = time.monotonic()
    text = refusal(run, url=slow_server(*(head[n : n + 1] for n in range(len(head)))))
    assert time.monotonic() - started < 8
    assert "the server did not answer within 1 seconds. Run it again" in text


def test_a_slow_download_that_takes_many_times_the_limit_arrives(run, monkeypatch, slow_server):
    monkeypatch.setattr(web, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(web, "HEADER_SECONDS", 0.5)
    step = len(ROWS) // 25
    pieces = (ROWS[start : start + step] for start in range(0, len(ROWS), step))
    started = time.monotonic()
    assert len(run(url=slow_server(HEAD, *pieces))) == 20_000
    assert time.monotonic() - started > 2


SIGNED = "X-Amz-Signature=hunter2&token=hunter2"


@pytest.mark.parametrize("fault", ["none", "nothing there", "broken", "other bytes", "no server"])
def test_a_signed_address_that_a_server_redirects_to_is_never_shown(run, hub, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    target = "http://127.0.0.1:1" if fault == "no server" else hub.url
    hub.redirects["moved.jsonl"] = f"{target}/files/{'absent' if fault == 'nothing there' else 'rows'}.jsonl?{SIGNED}"
    hub.cut_at = 700_000 if fault == "broken" else 0
    changes = {"url": f"{hub.url}/files/moved.jsonl", "sha256": "0" * 64 if fault == "other bytes" else SHA}
    text = str(run(**changes)[:3]) if fault in ("none", "broken") else refusal(run, **changes)
    printed = capfd.readouterr()
    written = [path.read_text(errors="replace") for path in Path().rglob("*") if path.is_file()]
    names = [str(path) for path in Path().rglob("*")]
    for place in (text, caplog.text, printed.out, printed.err, *written, *names):
        assert "hunter2" not in place


def test_an_address_of_unknown_kind_is_not_requested(run, hub):
    assert "/files/rows ends in none of .jsonl, .json," in refusal(run, url=f"{hub.url}/files/rows")
    assert not hub.requests


def test_experiments_in_a_copy_share_the_downloads(run, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "original"))
    run()
    assert (tmp_path / "original/.dvc/tmp/downloads" / f"{SHA}.jsonl").is_file()
