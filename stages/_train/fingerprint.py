"""What a checkpoint belongs to: everything that shapes the trained bytes, by name, and one hash of it."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

from stages.core.code_hash import stage_hashes
from stages.core.machine import ResolvedMachine
from stages.core.params import Params
from stages.core.paths import ADAPTERS, BASE, CODE, sha256
from stages.runtime.integrity import base_files
from stages.runtime.runner import declaration

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")  # metrics/train.json records their versions too
LOWER_LIBRARIES = ("accelerate", "datasets", "numpy", "safetensors")
HASH_PREFIX = "sha256:"
MOST_NAMED = 5  # changes


def training_fingerprint(params: Params, machine: ResolvedMachine) -> dict[str, object]:
    """{name: value or hash} of the base, the rows, the stage's code, params, and library versions.

    Of the machine it has what changes the bytes. The number of threads and the model of the GPU may change. So may
    machine.memory: what is kept and what is computed again are the same numbers.
    """
    deps, _ = declaration("train")
    return {
        **{dep: content_hash(Path(dep)) for dep in deps if Path(dep) != ADAPTERS and Path(dep).parent != CODE},
        **{file: HASH_PREFIX + value for file, value in stage_hashes("train").items()},
        **initial_adapter_hashes(params.lora.init_from),
        "seed": params.seed,
        **section_values(params, "quantization", "lora", "train"),
        "device": machine.device.type,
        "machine.attention": machine.packed_attention,
        "machine.sharding": machine.sharding,  # sharded, the adapters keep PEFT's forward, which rounds differently
        "processes": machine.processes,  # gradients that are summed in another order round differently
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in (*LIBRARIES, *LOWER_LIBRARIES)},
    }


def content_hash(dep: Path) -> str:
    """The hash of a file. For models/base it is that of its manifest's hashes: 14.5 GB need no second reading."""
    if dep == BASE:
        files = json.dumps(base_files(), sort_keys=True)
        return HASH_PREFIX + hashlib.sha256(files.encode()).hexdigest()
    return HASH_PREFIX + sha256(dep)


def initial_adapter_hashes(name: str | None) -> dict[str, str]:
    """{file: hash} of the adapter in data/adapters that the training starts from. name: lora.init_from."""
    files = sorted(path for path in (ADAPTERS / name).iterdir() if path.is_file()) if name else []
    return {str(path): content_hash(path) for path in files}


def section_values(params: Params, *sections: str) -> dict[str, object]:
    """{section.key: value} of sections of params."""
    return {f"{name}.{key}": value for name in sections for key, value in getattr(params, name).model_dump().items()}


def fingerprint_name(parts: dict[str, object]) -> str:
    """The name of a fingerprint's folder: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint_changes(before: dict[str, object], after: dict[str, object]) -> str:
    """Names what differs, such as `lora.r 16 → 8, stages/train.py`. After the first five it only counts."""
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new:
            changes.append(name if HASH_PREFIX in f"{old}{new}" else f"{name} {old} → {new}")
    rest = [f"{len(changes) - MOST_NAMED} more"] if len(changes) > MOST_NAMED else []
    return ", ".join(changes[:MOST_NAMED] + rest)
