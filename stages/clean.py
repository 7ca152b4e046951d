"""Clean: data/raw, data/decontaminate, params `clean` → data/clean/{train,validation,test,rejected}.parquet and
metrics/clean.json.

Every row read is either kept in one split or stands in rejected.parquet with its reason and where it came from; of
rows that say the same, the one with the lowest id is kept, and `detail` names it.
Run it with `dvc repro clean`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages._clean.contamination import contamination, read_benchmarks
from stages._clean.duplicates import find_duplicates
from stages._clean.formats import Messages, ToolCallError, reader, turn
from stages._clean.rules import mend, reject_reason
from stages.shared.errors import UserError
from stages.shared.params import Clean, Params
from stages.shared.paths import CLEAN, DECONTAMINATE, METRICS, RAW, read_json, whole_directory, write_json
from stages.shared.records import SPLITS, Record, content_id, record_file, record_table, split_of
from stages.shared.stage import Outcome, run_stage

LENGTHS = (250, 500, 1000, 2000, 4000, 8000, 16000)  # characters: where the metrics' buckets end


class Verdict(NamedTuple):
    record: Record
    reason: str | None  # why it is not kept
    detail: str = ""  # what the reason is about, such as the id of the record that is kept instead


@dataclass(frozen=True)
class Cleaned:
    """Records by split, and what is rejected, all in the order read."""

    splits: dict[str, list[Record]]
    rejected: list[Verdict]
    fixed: int  # rows, kept or not, in which the text was repaired
    redacted: Counter[str]  # secrets and personal data taken out, by kind, of rows kept or not


def clean(
    rows: Iterable[dict],
    params: Clean,
    to_messages: Callable[[object], Messages],
    benchmarks: dict[str, str] | None = None,
) -> Cleaned:
    """Each row kept in one split, or rejected with a reason. `benchmarks` is what read_benchmarks() returns.

    Raises:
        UserError: more than params.max_malformed_rows rows do not fit the format.
    """
    read: list[Verdict] = []
    malformed: list[str] = []
    fixed, redacted = 0, Counter()
    for raw in rows:
        try:
            if "unreadable" in raw:
                raise ValueError("the line cannot be read")
            messages, reason = to_messages(raw["row"]), None
        except (TypeError, ValueError) as error:
            reason = "tool_call" if isinstance(error, ToolCallError) else "malformed"
            if reason == "malformed":
                malformed.append(f"{raw['source']}: {error}")
            messages = [turn("user", json.dumps(raw.get("row", raw.get("unreadable"))))]
        mended = mend(messages, params)
        fixed += mended.fixed
        redacted += mended.secrets + mended.personal
        record = Record(content_id(mended.messages), mended.messages, str(raw["source"]))
        read.append(verdict(record, reason or reject_reason(mended, params), benchmarks or {}))
    if len(malformed) > params.max_malformed_rows:
        raise UserError(
            f"malformed rows: {len(malformed)}, more than clean.max_malformed_rows ({params.max_malformed_rows}). The "
            f"first: {malformed[0]}. Mend them, or raise the limit to have them rejected and counted"
        )
    return Cleaned(*divided(read, params), fixed, redacted)


def verdict(record: Record, reason: str | None, benchmarks: dict[str, str]) -> Verdict:
    shared = None if reason else contamination(record.messages, benchmarks)
    return Verdict(record, "contaminated", shared) if shared else Verdict(record, reason)


def divided(read: list[Verdict], params: Clean) -> tuple[dict[str, list[Record]], list[Verdict]]:
    """The records with the reasons that are known so far; what is left is searched for duplicates and split."""
    passed = [place for place, each in enumerate(read) if each.reason is None]
    found = find_duplicates([read[place].record for place in passed], params.near_duplicate_threshold)
    duplicates = {passed[place]: reason for place, reason in found.items()}
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    rejected: list[Verdict] = []
    for place, each in enumerate(read):
        if each.reason is not None:
            rejected.append(each)
        elif place in duplicates:
            rejected.append(Verdict(each.record, *duplicates[place]))
        else:
            splits[split_of(each.record.id, params.validation_fraction, params.test_fraction)].append(each.record)
    return splits, rejected


def lengths(records: list[Record]) -> dict[str, int]:
    """How many conversations have up to so many characters; the names sort as the numbers do."""
    counts = {f"to_{edge:05}": 0 for edge in LENGTHS} | {"longer": 0}
    for record in records:
        characters = sum(len(message["content"]) for message in record.messages)
        edge = next((edge for edge in LENGTHS if characters <= edge), None)
        counts["longer" if edge is None else f"to_{edge:05}"] += 1
    return counts


def metrics_of(cleaned: Cleaned) -> dict:
    kept = {split: len(records) for split, records in cleaned.splits.items()}
    rejected = Counter(each.reason for each in cleaned.rejected)
    rows = {"read": sum(kept.values()) + rejected.total(), "kept": sum(kept.values()), "rejected": dict(rejected)}
    characters = {split: lengths(records) for split, records in cleaned.splits.items()}
    repaired = {"fixed": cleaned.fixed, "redacted": dict(cleaned.redacted)}
    return {"rows": rows, "splits": kept, "characters": characters, **repaired}


def read_rows(path: Path) -> Iterable[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def main(params: Params) -> Outcome:
    benchmarks = read_benchmarks(DECONTAMINATE, params.clean.decontaminate)
    to_messages = reader(read_json(RAW / "format.json"))
    cleaned = clean(read_rows(RAW / "rows.jsonl"), params.clean, to_messages, benchmarks)
    metrics = metrics_of(cleaned)
    for split in SPLITS:
        if not cleaned.splits[split]:
            raise UserError(f"no row is left for the {split} split: {metrics['rows']}. See clean in params.yaml")
    with whole_directory(CLEAN) as folder:
        for split, records in cleaned.splits.items():
            with record_file(folder / f"{split}.parquet") as file:
                file.write_table(record_table(records))
        rejected, reasons, details = ([each[field] for each in cleaned.rejected] for field in range(3))
        with record_file(folder / "rejected.parquet", "reason", "detail") as file:
            file.write_table(record_table(rejected, reason=reasons, detail=details))
    write_json(METRICS / "clean.json", metrics)
    counts = ", ".join(f"{count} {split}" for split, count in metrics["splits"].items())
    return Outcome(f"{metrics['rows']['kept']} of {metrics['rows']['read']} rows kept: {counts}")


if __name__ == "__main__":
    run_stage("clean", main)
