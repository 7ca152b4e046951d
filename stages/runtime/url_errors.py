"""What to tell the user when a data file cannot be fetched from its address."""

from urllib.parse import urlsplit

DOWNLOAD_BY_HAND = "download it by hand, and name the file in data.path with `data.source: file`"


def address_without_secrets(url: str) -> str:
    """Names data.url in a message. It leaves out the user's name, the password and the query, which may be a key."""
    parts = urlsplit(url)
    return f"data.url {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def explain_url_error(error: Exception) -> str:
    """Says what went wrong and what to do. Only a socket's own text is repeated: others may hold an address's key."""
    import httpx2

    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
    proxy = "HTTPS_PROXY and HTTP_PROXY"
    cases = [
        (status in (404, 410), f"nothing is there (HTTP {status}). Correct data.url"),
        (
            status in (401, 403),
            f"the server refuses it (HTTP {status}): it may ask for a login. With one, {DOWNLOAD_BY_HAND}",
        ),
        (
            status == 407 or isinstance(error, httpx2.ProxyError),
            f"the proxy refuses it. Check {proxy}, or {DOWNLOAD_BY_HAND}",
        ),
        (status == 429 or status >= 500, f"the server answers HTTP {status}. Try again later, or {DOWNLOAD_BY_HAND}"),
        (status, f"the server answers HTTP {status}. Correct data.url, or {DOWNLOAD_BY_HAND}"),
        (
            isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout),
            f"the server cannot be reached ({type(error).__name__}: {error}). Check the network and {proxy}, "
            f"or {DOWNLOAD_BY_HAND}",
        ),
        (isinstance(error, ValueError), f"no request can be sent. Correct data.url, and check {proxy}"),
    ]
    broken = (
        f"the download broke off ({type(error).__name__}). Run it again: it continues from there, or {DOWNLOAD_BY_HAND}"
    )
    return next((text for applies, text in cases if applies), broken)
