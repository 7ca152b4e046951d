"""Jinja for the report's pages, and the only script that report.html may run."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages._report.escaping import as_is, escape_expression, fenced

FOLDER = Path(__file__).parent


def template_environment() -> Environment:
    """A Jinja environment that escapes each expression for its page."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        finalize=escape_expression,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fenced": fenced, "as_is": as_is}
    return environment


def page_script() -> dict[str, str]:
    """The script and its hash. The page's policy allows a browser to run only the script with this hash."""
    text = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": text, "script_hash": f"sha256-{digest}"}
