"""What a checkpoint belongs to: all that shapes the trained bytes, by name, and one hash of it."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

from stages._train.distributed import world
from stages.shared.base import base_files
from stages.shared.models import pick_attention, pick_device
from stages.shared.params import Params
from stages.shared.paths import ADAPTERS, BASE, sha256
from stages.shared.stage import declaration

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
        **{dep: contents(Path(dep)) for dep in deps if Path(dep) != ADAPTERS},
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
