"""Chooses the files of a folder that hold rows, and refuses what is no plain file of that folder."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.integrity import check_plain_files

# Files that describe a data set of the hub, or one that `datasets` saved. They hold no rows.
DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json"}
LARGEST_STATE = 1 << 24  # bytes


def folder_files(folder: Path, pattern: str | None, split: str, is_data: Callable[[Path], bool]) -> list[str]:
    """Returns the relative paths of the files in a folder that hold rows, sorted.

    Args:
        pattern: the glob data.files. Without one, all files of known kinds are taken.
        split: which part of a saved DatasetDict is taken; data.split.
        is_data: whether a file's ending is known.

    Raises:
        UserError: a named pipe or a device is among them, a link leads out of the folder, or a saved data set is not
            whole.
    """
    check_plain_files({"data.path": folder})
    if pattern:
        paths = [path for path in folder.glob(pattern) if path.is_file() or path.is_symlink()]
        chosen = [path for path in paths if not describes(path)]
    else:
        chosen = list(data_files(folder, split, is_data))
    names = {path.relative_to(folder).as_posix(): path for path in chosen}
    visible = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    for name in visible:
        check_link(folder, names[name])
    return [name for name in visible if names[name].is_file()]


def data_files(folder: Path, split: str, is_data: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields the files of known kinds, the parts of data sets that `datasets` saved, and links to folders."""
    if (folder / "dataset_dict.json").is_file():
        yield from data_files(split_folder(folder, split), split, is_data)
        return
    if (parts := saved_parts(folder)) is not None:
        yield from parts
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from data_files(entry, split, is_data)
        elif entry.is_dir() or (is_data(entry) and not describes(entry)):
            yield entry


def state_of(folder: Path) -> dict | None:
    """Returns what `datasets` noted in state.json when it saved a data set to the folder, or None."""
    path = folder / "state.json"
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= LARGEST_STATE:
            state = json.loads(path.read_text(encoding="utf-8"))
            return state if isinstance(state, dict) and isinstance(state.get("_data_files"), list) else None
    return None


def describes(path: Path) -> bool:
    """Tells whether a file describes a data set and holds no rows of it."""
    return path.name in DESCRIPTIONS or (path.name == "state.json" and state_of(path.parent) is not None)


def saved_parts(folder: Path) -> list[Path] | None:
    """Returns the files of a data set that save_to_disk() wrote to the folder, or None if the folder is no such one.

    Raises:
        UserError: a file is missing, or the rows stand in another order or number than in the files.
    """
    state = state_of(folder)
    if state is None or not (folder / "dataset_info.json").is_file():
        return None
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: only a selection of its rows was saved. Save it anew: flatten_indices(), then save")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in state["_data_files"]]
    wrong = [name for name in names if not isinstance(name, str) or "/" in name or not (folder / name).is_file()]
    if wrong:
        raise UserError(f"{folder}: state.json names the file {wrong[0]}, which is not there. Copy the whole folder")
    return [folder / name for name in names]


def split_folder(folder: Path, split: str) -> Path:
    """Returns the folder of one split of a DatasetDict that save_to_disk() wrote.

    Raises:
        UserError: it has no such split.
    """
    splits = None
    with suppress(OSError, ValueError, RecursionError):
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise UserError(f"{folder}/dataset_dict.json names no splits. Copy the whole folder, or take the file out")
    if split not in splits or not (folder / split).is_dir():
        raise UserError(f"data.split: {folder} has no split {split}. It has {', '.join(splits)}; set data.split to one")
    return folder / split


def check_link(folder: Path, path: Path) -> None:
    """Refuses a path that leads out of the folder, except into DVC's cache, where `cache.type symlink` leads.

    Raises:
        UserError: it leads elsewhere, or nowhere.
    """
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise UserError(f"data.path: the link {path} leads to {target}, which does not exist. Restore it or remove it")
    if target.is_relative_to(os.path.realpath(folder)) or any(target.is_relative_to(place) for place in dvc_caches()):
        return
    raise UserError(
        f"data.path: the link {path} leads out of {folder}, to {target}. Copy it into the folder, or set data.path to "
        "the place where it is"
    )


@cache
def dvc_caches() -> set[str]:
    """Returns the real paths of the folders in which DVC keeps files: of this repository, and of the original one in
    `dvc exp run --temp` and in queues."""
    from dvc.config import Config, ConfigError

    found = set()
    for root in {Path(os.environ.get("DVC_ROOT", ".")).resolve(), Path.cwd()}:
        folder = next((place / ".dvc" for place in (root, *root.parents) if (place / ".dvc").is_dir()), None)
        if folder is not None:
            with suppress(ConfigError):
                found.add(os.path.realpath(Config(str(folder))["cache"].get("dir") or folder / "cache"))
    return found
