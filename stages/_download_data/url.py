"""Downloads a data file from the web once, into .dvc/tmp/downloads, and checks its sha256.

A connection that breaks is resumed where it broke, in the same run or the next one.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stages._download_data.files import KNOWN_ENDINGS, known_ending
from stages.core.params import Data
from stages.core.paths import sha256, write_json
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from stages.runtime.url_errors import DOWNLOAD_BY_HAND, address_without_secrets, explain_url_error

ANSWER_SECONDS, SILENT_SECONDS = 10, 30  # for the first answer, and between two pieces of the file
HEADER_SECONDS = 60  # for all redirects and the head of the answer, however slowly they come
# A download is given up that is slower than this for as long as this. A slow one of many hours is not.
SLOW_BYTES_A_SECOND, SLOW_SECONDS = 1000, 60
ATTEMPTS = 5  # connections; each continues where the last one broke


def downloads() -> Path:
    """Returns the folder for downloads. DVC_ROOT is the original repository in `--temp` and queue runs too."""
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "downloads")


def file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


def fetch_url(data: Data) -> Path:
    """Returns the file at data.url, after its sha256 was compared with data.sha256.

    Raises:
        UserError: the file cannot be fetched, is of an unknown kind, or has another sha256; the message names it.
    """
    ending = known_ending(Path(file_name(data.url)))
    if ending is None:
        raise UserError(
            f"{address_without_secrets(data.url)} ends in none of {KNOWN_ENDINGS}. "
            f"If it is such a file, {DOWNLOAD_BY_HAND}"
        )
    folder = downloads()
    finished = folder / f"{data.sha256}{ending}"
    if finished.is_file() and sha256(finished) == data.sha256:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{hashlib.sha256(data.url.encode()).hexdigest()[:32]}.partial"
    download(data.url, partial)
    digest = sha256(partial)
    # Named by its own sha256: once the user writes that into data.sha256, the file need not be fetched again.
    partial.replace(folder / f"{digest}{ending}")
    partial.with_suffix(".json").unlink(missing_ok=True)
    if digest != data.sha256:
        raise UserError(
            f"{address_without_secrets(data.url)}: data.sha256 is {data.sha256 or 'not set'}, but the file that came "
            f"has {digest}. Look at {folder / f'{digest}{ending}'}; if it is the file you want, set data.sha256: "
            f"{digest}"
        )
    return finished


class SlowServerError(Exception):
    """The server sends, but so slowly that the file would never come."""


@contextlib.contextmanager
def no_addresses_in_logs() -> Iterator[None]:
    """Silences the loggers of the HTTP client. A server may redirect to a signed address, which they would write."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("httpx", "httpcore"))]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def hang_up_after(seconds: float) -> Iterator[dict]:
    """Gives the client's extensions for a request, and ends its connections if the block takes longer.

    The client's own limit is for one piece. A server that sends a byte a second would never reach it.

    Raises:
        SlowServerError: the block took longer.
    """
    sockets: list[socket.socket] = []
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        for opened in sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def trace(name: str, info: dict) -> None:
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            sockets.append(info["return_value"].get_extra_info("socket"))
            if late.is_set():
                hang_up()

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield {"trace": trace}
    except Exception:
        if late.is_set():
            raise SlowServerError(f"the server did not answer within {seconds} seconds") from None
        raise
    finally:
        timer.cancel()


def not_too_slow(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Passes the pieces on.

    Raises:
        SlowServerError: they were fewer than SLOW_BYTES_A_SECOND for SLOW_SECONDS.
    """
    started, received = time.monotonic(), 0
    for piece in pieces:
        yield piece
        received += len(piece)
        if (passed := time.monotonic() - started) >= SLOW_SECONDS:
            if received < SLOW_BYTES_A_SECOND * passed:
                raise SlowServerError(
                    f"the server sent less than {SLOW_BYTES_A_SECOND} bytes a second for {SLOW_SECONDS} seconds"
                )
            started, received = time.monotonic(), 0


def download(url: str, partial: Path) -> None:
    """Brings the whole file to `partial`, and continues what an earlier attempt or run left there."""
    import httpx2

    timeout = httpx2.Timeout(SILENT_SECONDS, connect=ANSWER_SECONDS)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with no_addresses_in_logs(), httpx2.Client(timeout=timeout, follow_redirects=True) as client:
                return receive(client, url, partial)
        except SlowServerError as error:
            raise UserError(
                f"{address_without_secrets(url)}: {error}. Run it again: it continues from there, or {DOWNLOAD_BY_HAND}"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            broke_off = isinstance(error, httpx2.ReadError | httpx2.ReadTimeout | httpx2.RemoteProtocolError)
            if not (broke_off and attempt < ATTEMPTS and partial.is_file()):
                raise UserError(f"{address_without_secrets(url)}: {explain_url_error(error)}") from None
    return None


def receive(client, url: str, partial: Path) -> None:
    """Appends to `partial` what one connection brings.

    A .json file next to it keeps the ETag or date by which the server knows this version of the file.
    """
    version, size = partial.with_suffix(".json"), 0
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, as its sha256 was taken
    with contextlib.suppress(OSError, ValueError):
        size, mark = partial.stat().st_size, json.loads(version.read_text(encoding="utf-8"))["if_range"]
        headers |= {"Range": f"bytes={size}-", "If-Range": mark} if size else {}
    with contextlib.ExitStack() as stack:
        with hang_up_after(HEADER_SECONDS) as extensions:
            response = stack.enter_context(client.stream("GET", url, headers=headers, extensions=extensions))
        if response.status_code == 416 and "Range" in headers:  # nothing is left to send, or the file became shorter
            partial.unlink()
            return receive(client, url, partial)
        response.raise_for_status()
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        resumed = response.status_code == 206 and "Range" in headers and start is not None and int(start[1]) == size
        etag = response.headers.get("ETag", "")
        mark = response.headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        if not resumed:  # the part may be of another version, so the file starts again
            partial.unlink(missing_ok=True)
            write_json(version, {"if_range": mark}) if mark else version.unlink(missing_ok=True)
        total = int(response.headers.get("Content-Length", 0))
        with open(partial, "ab") as file, progress("download_data", total, " bytes") as bar:
            # Without a size of its own, iter_raw() gives what came, and the speed is known after each piece.
            for piece in not_too_slow(response.iter_raw()):
                file.write(piece)
                if total:
                    bar.advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
    return None
