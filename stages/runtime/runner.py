"""What every stage does around its own work.

It checks params.yaml and the inputs first. It notices an edit while the stage runs. It turns a user's mistake into one
message and exit code 1. At the end it prints what was made and writes how long that took.
"""

from stages.runtime.command import explained

import datetime
import hashlib
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.code_hash import check_unhashed, module_hash, stage_hashes
from stages.core.params import Params, load_params
from stages.core.paths import CODE, PARAMS, read_json, timing_file, write_json
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_inputs

DOWNLOADS = ("download_model", "download_data")
HASHED_BELOW = 1 << 20  # bytes; a larger file is known by its size, mtime and inode


@dataclass(frozen=True)
class Outcome:
    """What a stage's main() returns.

    Args:
        message: the closing line.
        timing: figures for its timing file.
        finish: called at the very end, when everything is written and no input was edited meanwhile.
    """

    message: str
    timing: dict[str, float | int | str] = field(default_factory=dict)
    finish: Callable[[], None] = lambda: None


def declaration(stage: str) -> tuple[list[str], list[str]]:
    """What dvc.yaml declares for a stage such as `clean` or `evaluate@base`: its deps, its sections of params.yaml."""
    name, _, item = stage.partition("@")
    entry = read_yaml(Path("dvc.yaml"))["stages"][name]
    values = read_yaml(PARAMS)
    if item:
        values |= {"item": entry["foreach"][item], "key": item}
        entry = entry["do"]

    deps = [re.sub(r"\$\{([\w.]+)\}", lambda match: str(param_at(values, match[1])), dep) for dep in entry["deps"]]
    return deps, entry.get("params", [])


def param_at(values: dict, key: str) -> object:
    """The value at a key such as `data.path`, or None."""
    value: object = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def file_state(path: Path) -> tuple:
    status = path.stat()
    if status.st_size < HASHED_BELOW:
        return (hashlib.sha256(path.read_bytes()).hexdigest(),)
    return status.st_size, status.st_mtime_ns, status.st_ino


def code_file(stage: str) -> Path:
    """Where the stage hash_code leaves the hashes of the code of `clean` or `evaluate@base`."""
    return CODE / f"{stage.partition('@')[0]}.json"


def check_code(stage: str) -> None:
    """Compares the code of a stage that DVC runs with the hashes that DVC compares.

    Raises:
        UserError: a module was edited after the stage hash_code ran, so dvc.lock would name other code.
    """
    path = code_file(stage)
    if "DVC_STAGE" not in os.environ or str(path) not in declaration(stage)[0]:
        return
    try:
        recorded = read_json(path)
    except ValueError:  # no JSON: then all of it differs
        recorded = {}
    hashes = stage_hashes(path.stem)
    edited = sorted(file for file in recorded.keys() | hashes.keys() if recorded.get(file) != hashes.get(file))
    if edited:
        raise UserError(
            f"{', '.join(edited)} changed after DVC looked at the code. "
            f"Run `dvc repro --single-item --force hash_code`, then `dvc repro {stage}`"
        )


def snapshot(stage: str) -> dict[str, object]:
    """{dep, module or params section: its state}. DVC hashes them only after the command, so it would record an edit
    that came too late for the result."""
    deps, sections = declaration(stage)
    module_hash.cache_clear()
    state: dict[str, object] = dict(stage_hashes(stage.partition("@")[0]))
    for dep in map(Path, deps):
        if dep == code_file(stage):  # its modules count
            continue
        if not dep.exists():
            raise UserError(f"the input {dep} is missing. `dvc repro {stage}` makes it, or `dvc pull` brings it")
        files = sorted(p for p in dep.rglob("*") if p.is_file()) if dep.is_dir() else [dep]
        state |= {str(path): file_state(path) for path in files if "__pycache__" not in path.parts}
    values = read_yaml(PARAMS)
    return state | {f"{PARAMS}:{section}": param_at(values, section) for section in sections}


def check_unchanged(stage: str, before: dict[str, object]) -> None:
    """Compares a stage's inputs with the snapshot() from its start.

    Raises:
        UserError: one was edited meanwhile.
    """
    after = snapshot(stage)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed while the stage ran, so its result belongs to neither version. Run it again"
        )


def peak_memory() -> int:
    """The peak of this process's resident memory, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say_that_dvc_does_not_know(stage: str, machines: int) -> None:
    """Says it on the terminal of a person who starts a stage by hand.

    With several machines all but the first train along without DVC, and the processes of one training are no person's.
    """
    if "DVC_STAGE" not in os.environ and "RANK" not in os.environ and (stage != "train" or machines == 1):
        print(
            f"{stage}: started by hand, so DVC will not know of the result. `dvc repro {stage}` records it in dvc.lock",
            file=sys.stderr,
            flush=True,
        )


def run_stage(stage: str, main: Callable[[Params], Outcome]) -> None:
    """Runs main(params) as the stage `stage`. A user's mistake ends the process with exit code 1."""
    started = time.monotonic()
    with explained(stage, online=stage in DOWNLOADS):
        check_unhashed()
        params = load_params()
        say_that_dvc_does_not_know(stage, params.machine.nodes)
        check_code(stage)
        before = snapshot(stage)
        check_inputs(declaration(stage)[0])
        timing_file(stage).unlink(missing_ok=True)
        outcome = main(params)
        check_unchanged(stage, before)
        check_code(stage)  # somebody may have run hash_code by hand meanwhile
        seconds = time.monotonic() - started
        ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        figures = {"ended": ended, "seconds": round(seconds, 3), "peak_rss_bytes": peak_memory()}
        write_json(timing_file(stage), figures | outcome.timing)
        outcome.finish()
    print(f"{stage}: {outcome.message} ({seconds:.1f} s)", flush=True)
