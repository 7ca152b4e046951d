"""Whether models/base still holds what its manifest says."""

from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.paths import BASE, read_json, sha256

MEND_BASE = (
    f"Run `python -m tools.doctor --deep` and remove what it names in the cache, then `rm -rf {BASE}` and `dvc repro`"
)


def base_files(folder: Path = BASE) -> dict[str, str]:
    """{file of models/base: sha256}, as its manifest says."""
    path = folder / "manifest.json"
    try:
        return dict(read_json(path)["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is missing or damaged. {MEND_BASE}") from None


def digest(path: Path) -> str | None:
    """None where the file is absent or its disk cannot read it."""
    try:
        return sha256(path)
    except PermissionError:
        raise
    except OSError:
        return None


def check_base(folder: Path = BASE, names: Container[str] | None = None) -> None:
    """Compares models/base, or the files of it with these names, with its manifest. DVC goes by size and time, so what
    rots on the disk escapes it; training on it would take hours, and reading it once takes seconds."""
    expected = {name: value for name, value in base_files(folder).items() if names is None or name in names}
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(expected, pool.map(lambda name: digest(folder / name), expected), strict=True))
    damaged = [str(folder / name) for name in expected if found[name] != expected[name]]
    if damaged:
        raise UserError(f"{', '.join(damaged)} has other bytes than its manifest says, or is missing. {MEND_BASE}")
