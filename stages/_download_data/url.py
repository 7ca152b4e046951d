"""Downloads a data file from the web once, into .dvc/tmp/downloads, and checks its sha256.

A connection that breaks is resumed where it broke, in the same run or the next one.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stages._download_data.files import KNOWN_ENDINGS, known_ending
from stages.core.params import Data
from stages.core.paths import sha256, write_json
from stages.runtime.errors import UserError
from stages.runtime.progress import progress
from stages.runtime.url_errors import DOWNLOAD_BY_HAND, address_without_secrets, explain_url_error

ANSWER_SECONDS, SILENT_SECONDS = 10, 30  # for the first answer, and between two pieces of the file
ATTEMPTS = 5  # connections; each continues where the last one broke
PIECE_BYTES = 1 << 18


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


def download(url: str, partial: Path) -> None:
    """Brings the whole file to `partial`, and continues what an earlier attempt or run left there."""
    import httpx2

    timeout = httpx2.Timeout(SILENT_SECONDS, connect=ANSWER_SECONDS)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with httpx2.Client(timeout=timeout, follow_redirects=True) as client:
                return receive(client, url, partial)
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
    with client.stream("GET", url, headers=headers) as response:
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
            for piece in response.iter_raw(PIECE_BYTES):
                file.write(piece)
                if total:
                    bar.advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
    return None
