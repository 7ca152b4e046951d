"""A file from the web, known by its sha256: fetched once into .dvc/tmp/downloads, and resumed where it broke off."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stages._download_data.files import KNOWN, ending
from stages.core.params import Data
from stages.core.paths import sha256, write_json
from stages.runtime.errors import UserError
from stages.runtime.progress import progress

ANSWER_SECONDS, SILENT_SECONDS = 10, 30  # for the first answer, and between two pieces of the file
ATTEMPTS = 5  # connections; each goes on where the one before was cut
PIECE = 1 << 18
LOCAL = "download it by hand, and name the file in data.path with `data.source: file`"


def downloads() -> Path:
    """Beside the checkpoints: in the original repository in `--temp` and queue runs too, and ignored by Git."""
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "downloads")


def file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


def shown(url: str) -> str:
    """The address for a message, without the query, which may be somebody's key."""
    parts = urlsplit(url)
    return f"data.url {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fetch_url(data: Data) -> Path:
    """The file at data.url, once its sha256 is known to be data.sha256.

    Raises:
        UserError: the file cannot be had, is of an unknown kind, or has another sha256, which the message says.
    """
    known = ending(Path(file_name(data.url)))
    if known is None:
        raise UserError(f"{shown(data.url)} ends in none of {KNOWN}. If it is such a file, {LOCAL}")
    folder = downloads()
    landed = folder / f"{data.sha256}{known}"
    if landed.is_file() and sha256(landed) == data.sha256:
        return landed
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{hashlib.sha256(data.url.encode()).hexdigest()[:32]}.partial"
    download(data.url, partial)
    found = sha256(partial)
    # Under what was found, so that it need not come again once that is written down.
    partial.replace(folder / f"{found}{known}")
    partial.with_suffix(".json").unlink(missing_ok=True)
    if found != data.sha256:
        raise UserError(
            f"{shown(data.url)}: data.sha256 is {data.sha256 or 'not set'}, but the file that came has {found}. "
            f"Look at {folder / f'{found}{known}'}; if it is the file you want, set data.sha256: {found}"
        )
    return landed


def download(url: str, partial: Path) -> None:
    """Brings the whole file to `partial`, from where an earlier attempt or run was cut."""
    import httpx2

    timeout = httpx2.Timeout(SILENT_SECONDS, connect=ANSWER_SECONDS)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with httpx2.Client(timeout=timeout, follow_redirects=True) as client:
                return receive(client, url, partial)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            cut = isinstance(error, httpx2.ReadError | httpx2.ReadTimeout | httpx2.RemoteProtocolError)
            if not (cut and attempt < ATTEMPTS and partial.is_file()):
                raise UserError(f"{shown(url)}: {explain(error)}") from None
    return None


def receive(client, url: str, partial: Path) -> None:
    """One connection's part of the file. Beside it, a .json keeps by what the server knows this version of it."""
    version, size = partial.with_suffix(".json"), 0
    headers = {"Accept-Encoding": "identity"}  # the bytes as they lie there
    with contextlib.suppress(OSError, ValueError):
        size, mark = partial.stat().st_size, json.loads(version.read_text(encoding="utf-8"))["if_range"]
        headers |= {"Range": f"bytes={size}-", "If-Range": mark} if size else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and "Range" in headers:  # nothing is left there, or it became shorter
            partial.unlink()
            return receive(client, url, partial)
        response.raise_for_status()
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        resumed = response.status_code == 206 and "Range" in headers and start is not None and int(start[1]) == size
        etag = response.headers.get("ETag", "")
        mark = response.headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        if not resumed:  # another version's part is never gone on with: without a mark it starts anew
            partial.unlink(missing_ok=True)
            write_json(version, {"if_range": mark}) if mark else version.unlink(missing_ok=True)
        total = int(response.headers.get("Content-Length", 0))
        with open(partial, "ab") as file, progress("download_data", total, " bytes") as bar:
            for piece in response.iter_raw(PIECE):
                file.write(piece)
                if total:
                    bar.advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
    return None


def explain(error: Exception) -> str:
    """What went wrong and what to do. Only a socket's own text is repeated: others may hold an address with a key."""
    import httpx2

    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
    proxy = "HTTPS_PROXY and HTTP_PROXY"
    cases = [
        (status in (404, 410), f"nothing is there (HTTP {status}). Correct data.url"),
        (status in (401, 403), f"the server refuses it (HTTP {status}): it may ask for a login. With one, {LOCAL}"),
        (status == 407 or isinstance(error, httpx2.ProxyError), f"the proxy refuses it. Check {proxy}, or {LOCAL}"),
        (status == 429 or status >= 500, f"the server answers HTTP {status}. Try again later, or {LOCAL}"),
        (status, f"the server answers HTTP {status}. Correct data.url, or {LOCAL}"),
        (
            isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout),
            f"the server cannot be reached ({type(error).__name__}: {error}). Check the network and {proxy}, "
            f"or {LOCAL}",
        ),
        (isinstance(error, ValueError), f"it cannot be asked for. Correct data.url, and check {proxy}"),
    ]
    broken = f"the download broke off ({type(error).__name__}). Run it again: it goes on from there, or {LOCAL}"
    return next((text for applies, text in cases if applies), broken)
