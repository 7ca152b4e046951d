"""Whether a stage's inputs still hold the bytes that were recorded: in the manifest of models/base, and in dvc.lock.

DVC notices a change by size and time, and it trusts the read-only files of its cache, to which inputs are linked. So it
does not notice what a failing disk does to their bytes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.core.paths import BASE, PARAMS, read_json, sha256
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError

LOCK = Path("dvc.lock")
BASE_ADVICE = (
    f"Run `python -m tools.doctor --deep` and remove what it names in the cache, then `rm -rf {BASE}` and `dvc repro`"
)


def base_files(folder: Path = BASE) -> dict[str, str]:
    """{file of models/base: sha256}, from its manifest.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        return dict(read_json(path)["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is missing or damaged. {BASE_ADVICE}") from None


def readable_sha256(path: Path) -> str | None:
    """The SHA-256 of a file, or None if it is absent or its disk cannot read it."""
    try:
        return sha256(path)
    except PermissionError:
        raise
    except OSError:
        return None


def check_base(folder: Path = BASE, names: Container[str] | None = None) -> None:
    """Compares the files of models/base with its manifest. Reading them takes seconds; training on a damaged base would
    take hours.

    Args:
        names: the files to compare. None: all of them.

    Raises:
        UserError: a file has other bytes, or is missing.
    """
    expected = {name: value for name, value in base_files(folder).items() if names is None or name in names}
    with ThreadPoolExecutor(4) as pool:
        hashes = dict(zip(expected, pool.map(lambda name: readable_sha256(folder / name), expected), strict=True))
    damaged = [str(folder / name) for name in expected if hashes[name] != expected[name]]
    if damaged:
        raise UserError(f"{', '.join(damaged)} has other bytes than its manifest says, or is missing. {BASE_ADVICE}")


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def dvc_md5(out: Path) -> str:
    """The hash that DVC 3 records for a file. For a folder it is the hash of the list of its files, as JSON."""
    if not out.is_dir():
        return md5(out)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda name: md5(out / name), names))
    files = [{"md5": value, "relpath": name} for name, value in zip(names, hashes, strict=True)]
    return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def recorded_files(out: Path) -> dict[str, str]:
    """{file of a folder: md5} as DVC recorded it. Empty if DVC's cache has no list of it."""
    from dvc.repo import Repo

    with Repo() as repo:
        (recorded,) = repo.find_outs_by_path(str(out))
        return {"/".join(name): hash_info.value for name, _, hash_info in recorded.get_obj() or ()}


def damaged_files(out: Path, deps: list[Path]) -> list[str]:
    """The files of an output that are not as recorded. In a folder only files below the deps count: after
    `dvc repro --pull` the files of other stages may not be there."""
    if not out.is_dir():
        return [str(out)]
    recorded = recorded_files(out)
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    counted = sorted(
        name for name in recorded.keys() | present if any((out / name).is_relative_to(dep) for dep in deps)
    )
    return [str(out / name) for name in counted if name not in present or md5(out / name) != recorded.get(name)]


SPECIAL = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def check_plain_files(paths: dict[str, Path]) -> None:
    """Refuses pipes, sockets and devices, from which a reader may wait forever.

    Args:
        paths: {key of params.yaml: a file, or a folder with all that is in it}.

    Raises:
        UserError: one is not a file or folder.
    """
    for key, path in paths.items():
        inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        for each in (path, *inside):
            mode = each.stat().st_mode if each.exists() else 0
            if special := next((words for check, words in SPECIAL.items() if check(mode)), None):
                raise UserError(
                    f"{key}: {each} is {special}, not a file. Take it away, or set {key} to a file or folder"
                )


def check_new_paths(paths: dict[str, str]) -> None:
    """Checks that the paths in params.yaml exist.

    One that dvc.lock has may be missing: a clone with the results needs no source.

    Args:
        paths: {key of params.yaml: its value}.

    Raises:
        UserError: one does not exist, or is no file or folder.
    """
    stages = read_yaml(LOCK)["stages"] if LOCK.exists() else {}
    known = {dep["path"] for entry in stages.values() for dep in entry.get("deps", [])}
    for key, path in paths.items():
        if path not in known and not Path(path).exists():
            raise UserError(
                f"{key}: there is no file or folder {path}. Correct {PARAMS}, or put it there. It must exist "
                f"whatever {key.partition('.')[0]}.source is, because DVC watches it"
            )
    check_plain_files({key: Path(path) for key, path in paths.items()})


def check_inputs(deps: list[str]) -> None:
    """Compares the inputs that other stages made with dvc.lock, where DVC runs the stage.

    Files of models/base are compared with its manifest. A stage that loads all of it calls check_base() itself.

    Raises:
        UserError: an input has other bytes.
    """
    # Where several processes train, the first one has compared them.
    if "DVC_STAGE" not in os.environ or "LOCAL_RANK" in os.environ or not LOCK.exists():
        return
    stages, paths = read_yaml(LOCK)["stages"], [Path(dep) for dep in deps]
    in_base = [path.relative_to(BASE).as_posix() for path in paths if BASE in path.parents]
    if in_base and (BASE / "manifest.json").exists():
        check_base(names=in_base)
    made = {Path(out["path"]): (name, out["md5"]) for name, entry in stages.items() for out in entry.get("outs", [])}
    needed = {out for dep in paths for out in (dep, *dep.parents) if out in made and out != BASE}
    for out in sorted(needed):
        stage, expected = made[out]
        if dvc_md5(out) != expected and (damaged := damaged_files(out, paths)):
            raise UserError(
                f"{damaged[0]} is not what {stage} left there: dvc.lock has other bytes of it. If you changed it, `dvc "
                f"commit {stage}` takes your version. If not, the disk damaged it: run `python -m tools.doctor --deep` "
                f"and remove what it names in the cache, then `rm -rf {out}` and `dvc repro`, or `dvc pull {out}`"
            )
