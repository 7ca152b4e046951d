"""Checkpoints: <DVC_ROOT>/.dvc/tmp/checkpoints/<fingerprint>/step-<n>, each whole or not there.

DVC_ROOT is the original repository in `dvc exp run --temp` and in the queue too. So a run continues from there,
whatever folder the stopped one ran in. Checkpoints are no outs of the stage: DVC would record and restore them.

A training removes its own folder once all its results are written. Folders that other trainings left are removed when a
training starts. Of those with a checkpoint, the OTHERS_KEPT newest stay, and so do folders in use.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from stages._train.fingerprint import fingerprint_changes, fingerprint_name
from stages.core.paths import read_json, sha256, sync, write_json
from stages.runtime.errors import UserError
from stages.runtime.lock import take_lock

OTHERS_KEPT = 3
MANIFEST = "manifest.json"  # in a checkpoint: {file: its size and sha256}


def checkpoint_root() -> Path:
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "checkpoints")


def finished_checkpoints(folder: Path) -> list[Path]:
    """The folder's finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, or an empty string."""
    try:
        files = read_json(checkpoint / MANIFEST)
        if not isinstance(files, dict) or not files:
            return f"{MANIFEST} names no files"
        for name, expected in files.items():
            if (checkpoint / name).stat().st_size != expected["size"]:
                return f"{name} is cut short"
            if sha256(checkpoint / name) != expected["sha256"]:
                return f"{name} has other bytes than were written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{error.__class__.__name__}: {error}"
    return ""


class Checkpoints:
    """The folder of one fingerprint, locked for this process.

    Args:
        parts: the fingerprint.
        limit: how many checkpoints are kept.

    Raises:
        UserError: another process holds the lock.
    """

    def __init__(self, parts: dict[str, object], limit: int):
        self.opened = time.monotonic()
        self.parts, self.limit = parts, limit
        self.folder = checkpoint_root() / fingerprint_name(parts)
        self.lock = take_lock(self.folder / "lock")
        write_json(self.folder / "fingerprint.json", parts)
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial)

    def newest(self) -> Path | None:
        """The newest whole checkpoint. Prints where the training begins and why there."""
        for checkpoint in finished_checkpoints(self.folder):
            if not (problem := checkpoint_damage(checkpoint)):
                print(f"train: continues from step {step_of(checkpoint)}", flush=True)
                return checkpoint
            print(f"train: skips the damaged checkpoint {checkpoint} ({problem})", flush=True)
            shutil.rmtree(checkpoint)  # it would count among the `limit` newest
        for folder in self.other_folders():
            with contextlib.suppress(OSError, ValueError):
                changes = fingerprint_changes(read_json(folder / "fingerprint.json"), self.parts)
                place = f"{folder.name}, at step {step_of(finished_checkpoints(folder)[0])}"
                print(f"train: starts afresh; the newest other checkpoint ({place}) differs in {changes}", flush=True)
                break
        return None

    def other_folders(self) -> list[Path]:
        """Folders of other fingerprints with a checkpoint, newest first."""
        folders = [path for path in checkpoint_root().iterdir() if path != self.folder and finished_checkpoints(path)]
        return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)

    def tidy(self) -> None:
        """Removes what other trainings left behind."""
        kept = {self.folder, *self.other_folders()[:OTHERS_KEPT]}
        for path in set(checkpoint_root().iterdir()) - kept:
            with contextlib.suppress(UserError), take_lock(path / "lock"):
                shutil.rmtree(path)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Saves a checkpoint, which appears under its name whole or not at all.

        Args:
            step: optimizer steps taken.
            write: puts the checkpoint's files into the folder that it is given.

        Raises:
            UserError: it could not be written, most often for lack of space.
        """
        target = self.folder / f"step-{step:08}"
        partial = self.folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial)
            for path in sorted(partial.iterdir()):
                sync(path)
            files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in partial.iterdir()}
            write_json(partial / MANIFEST, files)
            sync(partial)
            partial.rename(target)
            sync(self.folder)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # the last two are torch's and safetensors', disk full
            shutil.rmtree(partial, ignore_errors=True)
            kept = ", ".join(str(step_of(path)) for path in finished_checkpoints(self.folder)) or "none"
            free = shutil.disk_usage(self.folder).free
            raise UserError(
                f"the checkpoint of step {step} could not be written ({error}); {free / 2**20:.0f} MiB are free at "
                f"{self.folder}. Checkpoints of earlier steps are kept: {kept}. Free some space and run it again"
            ) from error
        for old in finished_checkpoints(self.folder)[self.limit :]:
            shutil.rmtree(old)

    def remove(self) -> None:
        """Removes the folder, once all results are written. A kill meanwhile leaves whole checkpoints or damaged ones.

        The next run skips the damaged ones.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()
