"""Clean: data/raw, params `clean` → data/clean/{train,validation,test,rejected}.parquet, metrics/clean.json.

Every row read is either kept in one split or stands in rejected.parquet with its reason and where it came from.
Run it with `dvc repro clean`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stages._clean.formats import Messages, ToolCallError, reader, turn
from stages.shared.code import parse
from stages.shared.errors import UserError
from stages.shared.params import Clean, Params
from stages.shared.paths import CLEAN, METRICS, RAW, read_json, whole_directory, write_json
from stages.shared.records import SPLITS, Record, content_id, split_of, write_records
from stages.shared.stage import Outcome, run_stage


@dataclass(frozen=True)
class Cleaned:
    """splits: {split: records in the order read}; rejected: (record, reason) in the order read."""

    splits: dict[str, list[Record]]
    rejected: list[tuple[Record, str]]


def reject_reason(messages: Messages, clean: Clean) -> str | None:
    """Why a conversation is not kept, or None."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not all(message["content"].strip() for message in messages):
        return "empty_turn"
    if min(map(len, answers)) < clean.min_characters:
        return "too_short"
    if sum(len(message["content"]) for message in messages) > clean.max_characters:
        return "too_long"
    if clean.check_code and any(parse(answer) is None for answer in answers):
        return "code_does_not_parse"
    return None


def clean(rows: Iterable[dict], params: Clean, to_messages: Callable[[object], Messages]) -> Cleaned:
    """Each row kept in one split, or rejected with a reason. Of equal conversations the first one read is kept.

    Raises:
        UserError: more than params.max_malformed_rows rows do not fit the format.
    """
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    rejected: list[tuple[Record, str]] = []
    malformed: list[str] = []
    seen: set[str] = set()
    for raw in rows:
        try:
            if "unreadable" in raw:
                raise ValueError("the line cannot be read")
            messages = to_messages(raw["row"])
            reason = reject_reason(messages, params)
        except (TypeError, ValueError) as error:
            reason = "tool_call" if isinstance(error, ToolCallError) else "malformed"
            if reason == "malformed":
                malformed.append(f"{raw['source']}: {error}")
            messages = [turn("user", json.dumps(raw.get("row", raw.get("unreadable"))))]
        record = Record(content_id(messages), messages, str(raw["source"]))
        if reason is None and record.id in seen:
            reason = "duplicate"
        if reason is not None:
            rejected.append((record, reason))
            continue
        seen.add(record.id)
        splits[split_of(record.id, params.validation_fraction, params.test_fraction)].append(record)
    if len(malformed) > params.max_malformed_rows:
        raise UserError(
            f"malformed rows: {len(malformed)}, more than clean.max_malformed_rows ({params.max_malformed_rows}). The "
            f"first: {malformed[0]}. Mend them, or raise the limit to have them rejected and counted"
        )
    return Cleaned(splits, rejected)


def metrics_of(cleaned: Cleaned) -> dict:
    kept = {split: len(records) for split, records in cleaned.splits.items()}
    rejected = Counter(reason for _, reason in cleaned.rejected)
    rows = {"read": sum(kept.values()) + rejected.total(), "kept": sum(kept.values()), "rejected": dict(rejected)}
    return {"rows": rows, "splits": kept}


def read_rows(path: Path) -> Iterable[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def main(params: Params) -> Outcome:
    cleaned = clean(read_rows(RAW / "rows.jsonl"), params.clean, reader(read_json(RAW / "format.json")))
    metrics = metrics_of(cleaned)
    for split in SPLITS:
        if not cleaned.splits[split]:
            raise UserError(f"no row is left for the {split} split: {metrics['rows']}. See clean in params.yaml")
    with whole_directory(CLEAN) as folder:
        for split, records in cleaned.splits.items():
            write_records(folder / f"{split}.parquet", records)
        reasons = [reason for _, reason in cleaned.rejected]
        write_records(folder / "rejected.parquet", [record for record, _ in cleaned.rejected], reasons)
    write_json(METRICS / "clean.json", metrics)
    counts = ", ".join(f"{count} {split}" for split, count in metrics["splits"].items())
    return Outcome(f"{metrics['rows']['kept']} of {metrics['rows']['read']} rows kept: {counts}")


if __name__ == "__main__":
    run_stage("clean", main)
