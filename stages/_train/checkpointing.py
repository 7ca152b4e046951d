"""What a checkpoint belongs to: all that shapes the trained bytes, by name, and one hash of it."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from stages._train.distributed import world
from stages.core.code_hash import stage_hashes
from stages.core.models import pick_attention, pick_device
from stages.core.params import Params
from stages.core.paths import ADAPTERS, BASE, CODE, read_json, sha256, sync, write_json
from stages.runtime.errors import UserError
from stages.runtime.integrity import base_files
from stages.runtime.lock import take_lock
from stages.runtime.runner import declaration

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
BELOW = ("accelerate", "datasets", "numpy", "safetensors")
HASH = "sha256:"


def flat(values: dict, prefix: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return found


def adapter_contents(name: str | None) -> dict[str, str]:
    """Of data/adapters just the files of the adapter that the training starts from."""
    files = sorted(path for path in (ADAPTERS / name).iterdir() if path.is_file()) if name else []
    return {str(path): contents(path) for path in files}


def contents(dep: Path) -> str:
    """Of models/base the hash of its manifest's hashes: 14.5 GB need no second reading."""
    if dep == BASE:
        files = json.dumps(base_files(), sort_keys=True)
        return HASH + hashlib.sha256(files.encode()).hexdigest()
    return HASH + sha256(dep)


def fingerprint(params: Params) -> dict[str, object]:
    """{what: its value or hash}: base, rows, the stage's code, params, library versions.

    Of `machine` it takes what changes the bytes; threads and the model of the GPU may change with the box. So may
    machine.memory: weights kept and activations computed again are the same numbers.
    """
    deps, _ = declaration("train")
    machine = params.machine
    return {
        **{dep: contents(Path(dep)) for dep in deps if Path(dep) != ADAPTERS and Path(dep).parent != CODE},
        **{file: HASH + value for file, value in stage_hashes("train").items()},
        **adapter_contents(params.lora.init_from),
        "seed": params.seed,
        **flat(params.quantization.model_dump(), "quantization"),
        **flat(params.lora.model_dump(), "lora"),
        **flat(params.train.model_dump(), "train"),
        "device": pick_device(machine).type,
        "machine.attention": pick_attention(machine, packed=True),
        "machine.sharding": machine.sharding,  # sharded, the adapters keep PEFT's forward, which rounds otherwise
        "processes": world(),  # gradients summed in another order are rounded otherwise
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in (*LIBRARIES, *BELOW)},
    }


def name_of(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def difference(before: dict[str, object], now: dict[str, object]) -> str:
    """Such as `lora.r 16 → 8, stages/train.py`, five at most."""
    changed = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            changed.append(name if HASH in f"{old}{new}" else f"{name} {old} → {new}")
    more = [f"{len(changed) - 5} more"] if len(changed) > 5 else []
    return ", ".join(changed[:5] + more)


# Checkpoints: <DVC_ROOT>/.dvc/tmp/checkpoints/<fingerprint>/step-<n>, each whole or not there.
#
# DVC_ROOT is the original repository in `dvc exp run --temp` and in the queue too, so a run goes on from there,
# whatever folder it was killed in. They are no outs of the stage: DVC would record and restore them.
#
# A training removes its own folder once all its results are written. What others left behind goes when a training
# starts: of folders with other fingerprints the OTHERS newest that hold a checkpoint stay, and those in use.
#


OTHERS = 3
MANIFEST = "manifest.json"


def root() -> Path:
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "checkpoints")


def steps(folder: Path) -> list[Path]:
    """The finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def damage(checkpoint: Path) -> str:
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
    """The folder of one fingerprint, locked for this process."""

    def __init__(self, parts: dict[str, object], limit: int):
        self.opened = time.monotonic()
        self.parts, self.limit = parts, limit
        self.folder = root() / name_of(parts)
        self.lock = take_lock(self.folder / "lock")
        write_json(self.folder / "fingerprint.json", parts)
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial)

    def newest(self) -> Path | None:
        """The newest whole checkpoint, and a line that says where the training begins and why there."""
        for checkpoint in steps(self.folder):
            if not (problem := damage(checkpoint)):
                print(f"train: goes on from step {step_of(checkpoint)}", flush=True)
                return checkpoint
            print(f"train: passes over the damaged checkpoint {checkpoint} ({problem})", flush=True)
            shutil.rmtree(checkpoint)  # it would count among the `limit` newest
        for other in self.others():
            with contextlib.suppress(OSError, ValueError):
                changed = difference(read_json(other / "fingerprint.json"), self.parts)
                at = f"{other.name}, at step {step_of(steps(other)[0])}"
                print(f"train: starts afresh; the newest other checkpoint ({at}) differs in {changed}", flush=True)
                break
        return None

    def others(self) -> list[Path]:
        """Folders of other fingerprints with a checkpoint, newest first."""
        found = [path for path in root().iterdir() if path != self.folder and steps(path)]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    def tidy(self) -> None:
        kept = {self.folder, *self.others()[:OTHERS]}
        for path in set(root().iterdir()) - kept:
            with contextlib.suppress(UserError), take_lock(path / "lock"):
                shutil.rmtree(path)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """write(folder) puts the files of a checkpoint there; under its own name it appears whole or not at all.

        Raises:
            UserError: it could not be written, for want of space most of all.
        """
        target = self.folder / f"step-{step:08}"
        partial = self.folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial)
            for path in sorted(partial.iterdir()):
                sync(path)
            sizes = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in partial.iterdir()}
            write_json(partial / MANIFEST, sizes)
            sync(partial)
            partial.rename(target)
            sync(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # the latter two: torch and safetensors, disk full
            shutil.rmtree(partial, ignore_errors=True)
            kept = ", ".join(str(step_of(path)) for path in steps(self.folder)) or "none"
            free = shutil.disk_usage(self.folder).free
            raise UserError(
                f"the checkpoint of step {step} could not be written ({error}); {free / 2**20:.0f} MiB are free at "
                f"{self.folder}. Checkpoints of earlier steps are kept: {kept}. Free some space and run it again"
            ) from error
        for old in steps(self.folder)[self.limit :]:
            shutil.rmtree(old)

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Once all results are written. A kill in the middle leaves checkpoints that are passed over or just right."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()
