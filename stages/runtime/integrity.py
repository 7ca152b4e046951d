"""Whether models/base still holds what its manifest says."""

import hashlib
import json
import os
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.core.paths import BASE, read_json, sha256
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError

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


# Whether what other stages left behind still holds the bytes that dvc.lock has of it.
#
# DVC trusts a file of its cache that is read-only, as all of them are, whatever became of its bytes on the disk. Inputs
# are linked to them.
#


LOCK = Path("dvc.lock")


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def dvc_md5(out: Path) -> str:
    """The hash that DVC 3 has of a file, or of a folder: that of the list of its files, as JSON."""
    if not out.is_dir():
        return md5(out)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: md5(out / name), names))
    listed = [{"md5": each, "relpath": name} for name, each in zip(names, found, strict=True)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def listing(out: Path) -> dict[str, str]:
    """{file of a folder: md5}, as it was recorded; empty where DVC's cache has no list of it."""
    from dvc.repo import Repo

    with Repo() as repo:
        (recorded,) = repo.find_outs_by_path(str(out))
        return {"/".join(name): found.value for name, _, found in recorded.get_obj() or ()}


def damaged(out: Path, deps: list[Path]) -> list[str]:
    """Those files of `out` that are not as they were recorded. Of a folder, of which other stages' files may not be
    there (`dvc repro --pull`), only files of the deps count."""
    if not out.is_dir():
        return [str(out)]
    recorded = listing(out)
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    counted = sorted(name for name in recorded.keys() | there if any((out / name).is_relative_to(dep) for dep in deps))
    return [str(out / name) for name in counted if name not in there or md5(out / name) != recorded.get(name)]


def refuse_damage(deps: list[str]) -> None:
    """Compares those of the deps that other stages made with what dvc.lock says of them, where DVC runs the stage.

    Files of models/base with its manifest: all of them the stages that load it compare themselves.

    Raises:
        UserError: one has other bytes.
    """
    # Of several processes of a training the first one has compared them.
    if "DVC_STAGE" not in os.environ or "LOCAL_RANK" in os.environ or not LOCK.exists():
        return
    stages, paths = read_yaml(LOCK)["stages"], [Path(dep) for dep in deps]
    of_base = [path.relative_to(BASE).as_posix() for path in paths if BASE in path.parents]
    if of_base and (BASE / "manifest.json").exists():
        check_base(names=of_base)
    made = {Path(out["path"]): (name, out["md5"]) for name, each in stages.items() for out in each.get("outs", [])}
    needed = {out for dep in paths for out in (dep, *dep.parents) if out in made and out != BASE}
    for out in sorted(needed):
        stage, expected = made[out]
        if dvc_md5(out) != expected and (wrong := damaged(out, paths)):
            raise UserError(
                f"{wrong[0]} is not what {stage} left there: dvc.lock has other bytes of it. If you changed it, `dvc "
                f"commit {stage}` takes your version. If not, the disk damaged it: run `python -m tools.doctor --deep` "
                f"and remove what it names in the cache, then `rm -rf {out}` and `dvc repro`, or `dvc pull {out}`"
            )
