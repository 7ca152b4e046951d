"""Where every stage reads and writes, relative to the repository root, and how files land whole."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PARAMS = Path("params.yaml")
CODE = Path(".code")

RAW = Path("data/raw")
DECONTAMINATE = Path("data/decontaminate")
ADAPTERS = Path("data/adapters")
CLEAN = Path("data/clean")
TOKENIZED = Path("data/tokenized")

BASE = Path("models/base")
ADAPTER = Path("models/adapter")
MERGED = Path("models/merged")

METRICS = Path("metrics")
TIMING = METRICS / "timing"  # no stage declares it: times differ in each run
EVALUATIONS = METRICS / "evaluate"
CURVE = METRICS / "train_curve.csv"
VALIDATION_CURVE = METRICS / "validation_curve.csv"
RESULT = Path("metrics.json")
REPORTS = Path("reports")


def sync(path: Path) -> None:
    """Puts a file, or a folder's list of files, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes `path`'s place once the block ends without an error.

    What is in it is on the disk itself by then: after a power cut a name without its bytes would be taken for whole.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for each in (*partial.rglob("*"), partial):
            sync(each)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def json_text(value: object) -> str:
    """The text that write_json() writes: keys sorted, so that the same value gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    write_text(path, json_text(value))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def timing_file(stage: str) -> Path:
    """Where `clean` or `evaluate@base` leaves its seconds and memory."""
    return TIMING / f"{stage}.json"
