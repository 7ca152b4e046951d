"""The stage `clean` on a few rows: they are written, cleaned and read back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow.parquet
import pytest

from stages.clean import clean
from stages.core.params import Clean
from stages.core.records import SPLITS, Record, read_records

# All rules off.
OFF = {
    **{"min_characters": 0, "max_characters": 100_000, "check_code": False, "fix_text": False},
    **{"reject_refusals": False, "secrets": "keep", "personal_data": "keep", "near_duplicate_threshold": None},
    **{"max_malformed_rows": 1000, "decontaminate": []},
}
# {format: {part of the conversation: columns}} with the usual names.
COLUMNS = {
    "messages": {"conversation": ["messages"]},
    "sharegpt": {"conversation": ["conversations"]},
    "prompt-completion": {"user": ["prompt", "context"], "assistant": ["completion"], "history": ["history"]},
    "alpaca": {"user": ["instruction", "input"], "assistant": ["output"], "history": ["history"]},
    "question-answer": {"user": ["question", "context"], "assistant": ["answer"], "history": ["history"]},
    "input-output": {"user": ["input", "context"], "assistant": ["output"], "history": ["history"]},
    "inst": {"inst": ["text"]},
    "text": {"text": ["text"]},
}


def layout_of(name: str, columns: dict[str, list[str]] | None = None, **changes) -> dict:
    """Returns the content of data/raw/format.json for a format, with all columns that its rows may have."""
    columns = columns or COLUMNS[name] | ({} if name == "text" else {"system": ["system"], "tools": ["tools"]})
    return {"format": name, "columns": columns, "tests": True, "ignored": [], "python": False, **changes}


class Rejected(NamedTuple):
    record: Record
    reason: str
    detail: str


@dataclass(frozen=True)
class Cleaned:
    """What the stage `clean` makes of some rows, read back from its files."""

    splits: dict[str, list[Record]]
    rejected: list[Rejected]
    metrics: dict


def write_raw(rows: list[dict], folder: Path, shard_rows: int = 10_000) -> list[Path]:
    """Lines of data/raw as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        shards.append(folder / f"rows-{number:05}.jsonl")
        shards[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[start : start + shard_rows]))
    return shards


def clean_rows(rows: list[dict], section: Clean, layout: str | dict = "prompt-completion", **options) -> Cleaned:
    """Cleans rows. The options are those of write_raw, and `workers`."""
    workers = options.pop("workers", 1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_raw(rows, folder / "raw", **options)
        layout = layout_of(layout) if isinstance(layout, str) else layout
        tally = clean(shards, section, layout, folder, workers)
        splits = {
            split: [record for some in read_records(folder / f"{split}.parquet") for record in some] for split in SPLITS
        }
        gone = pyarrow.parquet.read_table(folder / "rejected.parquet").to_pylist()
    rejected = [
        Rejected(Record(row["id"], row["messages"], row["source"]), row["reason"], row["detail"]) for row in gone
    ]
    return Cleaned(splits, rejected, tally.metrics())


def pair(completion: str, prompt: str = "Double it") -> dict:
    return {"prompt": prompt, "completion": completion}


@pytest.fixture
def cleaned(params_of) -> Callable[..., Cleaned]:
    """cleaned(*answers, **changes) → the result of clean() with all rules off but those in `changes`."""

    def run(*answers: str, **changes) -> Cleaned:
        rows = [{"source": f"x:{number}", "row": pair(answer)} for number, answer in enumerate(answers)]
        return clean_rows(rows, params_of(clean={**OFF, **changes}).clean)

    return run


def reasons(result: Cleaned) -> list[str]:
    return [rejection.reason for rejection in result.rejected]


def kept(result: Cleaned) -> list[str]:
    """Returns the answers of the rows that stay."""
    return [record.messages[1]["content"] for split in result.splits.values() for record in split]
