"""One shard of data/raw: every row judged by itself, written down, and known afterwards by a few hashes alone."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from stages._clean.contamination import contamination, read_benchmarks
from stages._clean.formats import Messages, ToolCallError, fields_of, reader, tests_of, turn
from stages._clean.rules import Mended, mend, reject_reason
from stages._clean.signatures import band_hashes, compared, fingerprint, turns_of
from stages.core.params import Clean
from stages.core.paths import DECONTAMINATE
from stages.core.python_syntax import parse
from stages.core.records import SPLITS, Record, content_id, record_table, split_of

benchmarks_of = lru_cache(maxsize=1)(read_benchmarks)  # once in each process


class Judged(NamedTuple):
    """A row as it is to be written, and why it is not kept."""

    record: Record
    reason: str | None
    detail: str  # what the reason is about, such as the words that a benchmark has too
    fixed: bool
    redacted: Counter[str]
    malformed: str | None  # where and how


def judge(raw: dict, params: Clean, to_messages: Callable[[object], Messages], benchmarks: dict[str, str]) -> Judged:
    """All that can be said of a row without knowing the others. `raw` is a line of data/raw."""
    reason, malformed, detail, tests, fields = None, None, "", None, {}
    try:
        if "unreadable" in raw:
            raise ValueError("the line cannot be read")
        messages = to_messages(raw["row"])
        tests, fields = tests_of(raw["row"]), fields_of(raw["row"], tuple(params.keep_fields))
    except (TypeError, ValueError) as error:
        reason = "tool_call" if isinstance(error, ToolCallError) else "malformed"
        malformed = f"{raw['source']}: {error}" if reason == "malformed" else None
        messages = [turn("user", json.dumps(raw.get("row", raw.get("unreadable"))))]
    mended, tests = mend_both(messages, tests, params)
    record = Record(content_id(mended.messages), mended.messages, str(raw["source"]), tests, fields)
    reason = reason or reject_reason(mended, params)
    if reason is None and tests and parse(tests) is None:
        reason = "tests_do_not_parse"
    if reason is None and (shared := contamination(record.messages, benchmarks)):
        reason, detail = "contaminated", shared
    return Judged(record, reason, detail, mended.fixed, mended.secrets + mended.personal, malformed)


def mend_both(messages: Messages, tests: str | None, params: Clean) -> tuple[Mended, str | None]:
    """The conversation and its tests. Tests may mean the odd characters that they hold, but may show no secret."""
    mended = mend(messages, params)
    if tests is None:
        return mended, None
    other = mend([turn("tests", tests)], params.model_copy(update={"fix_text": False}))
    private = {"secrets": mended.secrets + other.secrets, "personal": mended.personal + other.personal}
    return mended._replace(**private), other.messages[0]["content"]


@dataclass(frozen=True)
class Job:
    """A shard of data/raw, and where the judged rows go: `work`.arrow, and what is compared of them `work`.text."""

    rows: Path
    work: Path
    params: Clean
    layout: dict


@dataclass(frozen=True)
class Shard:
    """What the stage holds in memory of a judged shard. `passed` and all after it have an entry for each row that no
    rule rejects."""

    job: Job
    rows: int
    fixed: int
    redacted: Counter[str]
    tested: bool  # whether some row brings tests
    malformed: list[str]
    passed: np.ndarray  # its place in the shard
    ids: np.ndarray
    sources: list[str]
    splits: np.ndarray  # its place in SPLITS
    characters: np.ndarray
    fingerprints: np.ndarray
    bands: np.ndarray
    ends: np.ndarray  # of its text in `work`.text, in bytes


def read_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def judge_shard(job: Job) -> Shard:
    params = job.params
    benchmarks = benchmarks_of(DECONTAMINATE.resolve(), tuple(params.decontaminate))
    to_messages = reader(job.layout)
    judged = [judge(raw, params, to_messages, benchmarks) for raw in read_rows(job.rows)]
    reasons, details = ([each[field] for each in judged] for field in (1, 2))
    extra = {name: [each.record.fields.get(name) for each in judged] for name in params.keep_fields}
    extra |= {"tests": [each.record.tests for each in judged]}
    table = record_table((each.record for each in judged), reason=reasons, detail=details, **extra)
    with pyarrow.ipc.new_stream(job.work.with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table)
    passed = [place for place, each in enumerate(judged) if each.reason is None]
    records = [judged[place].record for place in passed]
    turns = [turns_of(record) for record in records]
    texts = [compared(each) for each in turns]
    encoded = [text.encode() for text in texts]
    job.work.with_suffix(".text").write_bytes(b"".join(encoded))
    return Shard(
        job,
        len(judged),
        sum(each.fixed for each in judged),
        sum((each.redacted for each in judged), Counter()),
        any(each.record.tests for each in judged),
        [each.malformed for each in judged if each.malformed],
        np.array(passed, np.int64),
        np.array([record.id for record in records], "S32"),
        [record.source for record in records],
        np.array([place_of_split(record.id, params) for record in records], np.int8),
        np.array([sum(len(message["content"]) for message in record.messages) for record in records], np.int64),
        np.array([fingerprint(each) for each in turns], "S32"),
        band_hashes(texts, params.near_duplicate_threshold),
        np.cumsum([0, *map(len, encoded)])[1:],
    )


def place_of_split(record_id: str, params: Clean) -> int:
    return SPLITS.index(split_of(record_id, params.validation_fraction, params.test_fraction))


def read_judged(shard: Shard) -> pyarrow.Table:
    """Columns id, messages, source, reason, detail, those of clean.keep_fields and tests of all rows of the shard."""
    with pyarrow.OSFile(str(shard.job.work.with_suffix(".arrow")), "rb") as file:
        return pyarrow.ipc.open_stream(file).read_all()
