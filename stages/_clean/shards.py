"""Judges every row of a shard of data/raw on its own and writes it to a work file. Only a few hashes stay in memory."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from stages._clean.contamination import contamination, read_benchmarks
from stages._clean.details import one_line, rule_detail, syntax_error
from stages._clean.formats import Messages, fields_of, tests_of, to_messages, turn
from stages._clean.rules import Repaired, reject_reason, repair
from stages._clean.signatures import compared_text, conversation_fingerprint, turns_of
from stages._clean.tools import ToolCallError
from stages._clean.turn_order import FLAWS, order_turns
from stages.core.params import Clean
from stages.core.paths import DECONTAMINATE
from stages.core.python_syntax import parse
from stages.core.records import SPLITS, Record, content_id, record_table, split_of, turn_keys

DEEPEST = 3000  # calls and levels of JSON; Python's own limit is 1000
SHOWN_FIXED = 3  # repaired rows that are kept as samples

benchmarks_of = lru_cache(maxsize=1)(read_benchmarks)  # once in each process


class JudgedRow(NamedTuple):
    """A row as it is to be written, and why it is not kept."""

    record: Record
    reason: str | None
    detail: str  # what the reason found, such as the words that a benchmark has too
    fixed: Counter[str]  # {kind of repair: places in the text}
    change: str  # what a repair changed
    redacted: Counter[str]
    malformed: str | None  # `source: why` of a row that does not fit the format
    flaws: Counter[tuple[str, str]]  # {(repaired or rejected, what was wrong with the order of the turns): 1}
    unread: Counter[str]  # columns and keys of turns that hold a value and are not read


def judge_row(raw: dict, params: Clean, layout: dict, benchmarks: dict[str, str]) -> JudgedRow:
    """Decides everything about a row that does not depend on other rows. `raw` is a line of data/raw."""
    reason, malformed, detail, tests, fields, flaws, unread = None, None, "", None, {}, [], Counter()
    try:
        if "unreadable" in raw:
            raise ValueError(f"it cannot be read: {raw['why']}")
        messages, unread = to_messages(raw["row"], layout)
        messages, flaws, reason = order_turns(messages, params.repair_turns)
        detail = ", ".join(map(FLAWS.get, flaws)) if reason else ""
        if isinstance(raw["row"], dict):  # not a list of turns
            tests, fields = tests_of(raw["row"], layout), fields_of(raw["row"], tuple(params.keep_fields))
            unread -= Counter(params.keep_fields)
    except (TypeError, ValueError) as error:
        reason, detail = "tool_call" if isinstance(error, ToolCallError) else "malformed", error_detail(error, params)
        malformed = f"{raw['source']}: {error}" if reason == "malformed" else None
        messages = [turn("user", json.dumps(raw.get("row", raw.get("unreadable"))))]
    repaired, extras = repair_with_extras(messages, {"tests": tests, **fields}, params)
    tests, fields = extras.pop("tests"), extras
    record = Record(content_id(repaired.messages), repaired.messages, str(raw["source"]), tests, fields)
    if reason is None and (reason := reject_reason(repaired, params)):
        detail = rule_detail(reason, repaired, params)
    if reason is None and tests and parse(tests) is None:
        reason, detail = "tests_do_not_parse", syntax_error(tests)
    if reason is None and (shared := contamination(record.messages, benchmarks)):
        reason, detail = "contaminated", shared
    redacted = repaired.secrets + repaired.personal
    mended = Counter(("rejected" if reason in ("turn_order", "no_answer") else "repaired", flaw) for flaw in flaws)
    return JudgedRow(record, reason, detail, repaired.fixed, repaired.change, redacted, malformed, mended, unread)


def error_detail(error: Exception, params: Clean) -> str:
    """Returns what an error says about a row, without what `clean` redacts."""
    text = repair([turn("system", str(error))], params.model_copy(update={"fix_text": False})).messages[0]["content"]
    return one_line(text)


def repair_with_extras(
    messages: Messages, extras: dict[str, str | None], params: Clean
) -> tuple[Repaired, dict[str, str | None]]:
    """Repairs the conversation. Redacts its tests and kept fields, whose odd characters may be meant and stay."""
    repaired = repair(messages, params)
    given = [name for name, text in extras.items() if text is not None]
    if not given:
        return repaired, extras
    redacted = repair([turn(name, extras[name]) for name in given], params.model_copy(update={"fix_text": False}))
    private = {"secrets": repaired.secrets + redacted.secrets, "personal": repaired.personal + redacted.personal}
    texts = [said["content"] for said in redacted.messages]
    return repaired._replace(**private), extras | dict(zip(given, texts, strict=True))


@dataclass(frozen=True)
class ShardJob:
    """A shard of data/raw. Its judged rows go to `work`.arrow, and the texts that are compared to `work`.text."""

    rows: Path
    work: Path
    params: Clean
    layout: dict


@dataclass(frozen=True)
class JudgedShard:
    """What the stage holds in memory of a judged shard.

    `passed` and the fields after it have one entry for each row that no rule rejects.
    """

    job: ShardJob
    rows: int
    fixed: int  # rows whose text was repaired
    fixed_kinds: Counter[str]  # {kind of repair: rows}
    fixed_samples: list[dict[str, str]]  # of the rows with the lowest ids
    redacted: Counter[str]
    tested: bool  # whether any row has tests
    turns: set[str]  # the keys of turns that only some data sets have
    malformed: list[str]
    flaws: Counter[tuple[str, str]]
    unread: Counter[str]
    passed: np.ndarray  # the row's index in the shard
    ids: np.ndarray
    sources: list[str]
    splits: np.ndarray  # the index of its split in SPLITS
    characters: np.ndarray
    fingerprints: np.ndarray
    ends: np.ndarray  # the byte in `work`.text where its text ends


def read_raw_rows(path: Path) -> Iterator[dict]:
    """Yields the lines of a shard. A row may be nested as deeply as download_data, with fewer calls open, can read."""
    limit = sys.getrecursionlimit()
    with open(path, encoding="utf-8") as file:
        for line in file:
            sys.setrecursionlimit(DEEPEST)
            try:
                row = json.loads(line)
            finally:  # the limit decides which Python parses, so it is the usual one for the rules
                sys.setrecursionlimit(limit)
            yield row


def judge_shard(job: ShardJob) -> JudgedShard:
    """Judges the rows of a shard and writes the two work files."""
    params = job.params
    benchmarks = benchmarks_of(DECONTAMINATE.resolve(), tuple(params.decontaminate))
    judged = [judge_row(raw, params, job.layout, benchmarks) for raw in read_raw_rows(job.rows)]
    reasons, details = ([row[field] for row in judged] for field in (1, 2))
    extra = {name: [row.record.fields.get(name) for row in judged] for name in params.keep_fields}
    extra |= {"tests": [row.record.tests for row in judged]}
    table = record_table((row.record for row in judged), reason=reasons, detail=details, **extra)
    with pyarrow.ipc.new_stream(job.work.with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table)
    passed = [place for place, row in enumerate(judged) if row.reason is None]
    records = [judged[place].record for place in passed]
    turns = [turns_of(record) for record in records]
    texts = [compared_text(pairs) for pairs in turns]
    fixed = sorted((row for row in judged if row.fixed), key=lambda row: (row.record.id, row.record.source))
    encoded = [text.encode() for text in texts]
    job.work.with_suffix(".text").write_bytes(b"".join(encoded))
    return JudgedShard(
        job,
        len(judged),
        len(fixed),
        Counter(kind for row in fixed for kind in row.fixed),
        [fixed_sample(row) for row in fixed[:SHOWN_FIXED]],
        sum((row.redacted for row in judged), Counter()),
        any(row.record.tests for row in judged),
        turn_keys(message for row in judged for message in row.record.messages),
        [row.malformed for row in judged if row.malformed],
        sum((row.flaws for row in judged), Counter()),
        sum((row.unread for row in judged), Counter()),
        np.array(passed, np.int64),
        np.array([record.id for record in records], "S32"),
        [record.source for record in records],
        np.array([split_index(record.id, params) for record in records], np.int8),
        np.array([sum(len(message["content"]) for message in record.messages) for record in records], np.int64),
        np.array([conversation_fingerprint(pairs) for pairs in turns], "S32"),
        np.cumsum([0, *map(len, encoded)])[1:],
    )


def fixed_sample(row: JudgedRow) -> dict[str, str]:
    """Returns the sample of a repaired row, as it is one_line, with its id."""
    kinds = ", ".join(f"{places} {kind}" for kind, places in sorted(row.fixed.items()))
    return {"id": row.record.id, "source": row.record.source, "detail": kinds, "text": row.change}


def split_index(record_id: str, params: Clean) -> int:
    return SPLITS.index(split_of(record_id, params.validation_fraction, params.test_fraction))


def read_judged(shard: JudgedShard) -> pyarrow.Table:
    """Reads the shard's rows: id, messages, source, reason, detail, the columns of clean.keep_fields, and tests."""
    with pyarrow.OSFile(str(shard.job.work.with_suffix(".arrow")), "rb") as file:
        return pyarrow.ipc.open_stream(file).read_all()
