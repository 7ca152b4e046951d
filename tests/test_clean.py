"""Cleaning: which rows are kept, why others are rejected, that none is lost, and that none changes its split."""

import hashlib
import json
import math
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest

from stages._clean.empty_splits import EXPLAINED
from stages._clean.formats import to_messages as read_row
from stages._clean.rules import RULES
from stages._clean.shards import read_raw_rows
from stages._clean.tally import Tally
from stages.clean import main
from stages.core.paths import CLEAN, DECONTAMINATE, METRICS, RAW, read_json, write_json
from stages.core.records import SPLITS, content_id, read_records, split_of
from stages.runtime.errors import UserError
from tests.support.cleaning import clean_rows, layout_of, write_raw
from tests.support.conversations import PIECES, tool_rows

LONG_TOOLS = [
    {"type": "function", "function": {"name": f"tool_{n}", "description": "Finds what is asked for. " * 9}}
    for n in range(5)
]
CODE = "def double(number):\n    return 2 * number"
LAYOUT = layout_of("prompt-completion")
SYSTEM, USER, ASSISTANT = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
LONE = json.loads(r'"\ud800"')  # half of a surrogate pair, which JSON can write and UTF-8 cannot


SENTENCE = "a ferry crosses the lake nine times every day and carries forty people each time"
WORDS = SENTENCE.split()


def to_messages(row: dict) -> list[dict]:
    return read_row(row, LAYOUT).messages


def chat(*messages) -> dict:
    """Makes a row of pair()'s format from a list of turns."""
    return {"prompt": list(messages[:-1]), "completion": list(messages[-1:])}


def pair(prompt="Double it", completion=CODE) -> dict:
    return {"prompt": prompt, "completion": completion}


def rows_of(*rows) -> list[dict]:
    """Returns what download_data writes for these rows."""
    return [{"source": f"rows.jsonl:{number}", "row": row} for number, row in enumerate(rows, 1)]


def hash_text(number) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def numbered(count) -> list[dict]:
    return rows_of(*(pair(f"Return {n}", f"def answer():\n    return {n}") for n in range(count)))


def splits_by_id(cleaned) -> dict[str, str]:
    return {record.id: split for split, records in cleaned.splits.items() for record in records}


@pytest.fixture
def params(params_of):
    """params(**changes to the section `clean`). The limit of malformed rows is 1000 unless it is set."""
    limits = {"min_characters": 20, "max_characters": 4000, "check_code": True, "max_malformed_rows": 1000}
    limits |= {"fix_text": False, "reject_refusals": True, "secrets": "keep", "personal_data": "keep"}
    limits["near_duplicate_threshold"] = None  # rows that differ in a number would be near-duplicates
    return lambda **changes: params_of(clean={**limits, "validation_fraction": 0.04, "test_fraction": 0.1, **changes})


@pytest.fixture
def section(params):
    """section(**changes) → the params `clean` alone."""
    return lambda **changes: params(**changes).clean


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(), None),
        (pair(prompt=" \n\t"), "empty_turn"),
        (pair(completion=" " * 50), "empty_turn"),
        (chat({"role": "system", "content": ""}, *to_messages(pair())), None),
        (chat(USER, USER, ASSISTANT), "turn_order"),
        (chat(SYSTEM, USER), "no_answer"),
        (pair(completion="x = 1"), "too_short"),
        (pair(prompt="x" * 4000), "too_long"),
        (pair(completion="def double(number): return 2 *"), "code_does_not_parse"),
        (pair(completion=CODE + "\x00"), "code_does_not_parse"),
        (pair(completion="-" * 3900 + "1"), "code_does_not_parse"),  # deeper than Python's parser goes
        ("not an object", "malformed"),
    ],
)
def test_a_row_is_kept_or_is_rejected_with_a_reason(section, row, reason):
    cleaned = clean_rows(rows_of(row), section())
    assert [reason for _, reason, _ in cleaned.rejected] == ([] if reason is None else [reason])
    assert sum(map(len, cleaned.splits.values())) == (reason is None)


@pytest.mark.parametrize(("characters", "reason"), [(20, None), (19, "too_short")])
def test_min_characters_is_the_length_of_the_shortest_answer_that_is_kept(section, characters, reason):
    cleaned = clean_rows(rows_of(pair("?", "#" * characters)), section(min_characters=20))
    assert [reason for _, reason, _ in cleaned.rejected] == [reason][: reason is not None]


@pytest.mark.parametrize(("characters", "reason"), [(100, None), (101, "too_long")])
def test_max_characters_is_the_length_of_the_longest_conversation_that_is_kept(section, characters, reason):
    cleaned = clean_rows(rows_of(pair("?" * (characters - 40), "#" * 40)), section(max_characters=100))
    assert [reason for _, reason, _ in cleaned.rejected] == [reason][: reason is not None]


def test_the_shortest_answer_decides_whether_a_row_is_too_short(section):
    messages = [*to_messages(pair()), *to_messages(pair("And now?", "x"))]
    assert clean_rows(rows_of(chat(*messages)), section()).rejected[0][1] == "too_short"


def test_prose_is_kept_if_check_code_is_off(section):
    row = pair(completion="Twice a number is the number added to itself.\x00")
    assert clean_rows(rows_of(row), section()).rejected[0][1] == "code_does_not_parse"
    assert not clean_rows(rows_of(row), section(check_code=False)).rejected


MALFORMED = [
    (None, "the row is NoneType"),
    ({"text": "x"}, "the columns are text; prompt is missing"),
    ({"prompt": "x", "completion": None}, "the assistant text is NoneType, not a text or a number"),
    (chat({"role": f"user{LONE}", "content": "x"}, ASSISTANT), "a turn of prompt needs role"),
]
TOOL_CALLS = [chat(USER, {"role": "tool", "content": "x"}, ASSISTANT)]


def test_a_conversation_with_tools_is_rejected_but_not_malformed(section):
    cleaned = clean_rows([*numbered(3), *rows_of(*TOOL_CALLS)], section(max_malformed_rows=0))
    assert [rejection.reason for rejection in cleaned.rejected] == ["tool_call"]


@pytest.mark.parametrize(("row", "words"), MALFORMED)
def test_a_malformed_row_is_explained(section, row, words):
    with pytest.raises(UserError) as caught:
        clean_rows([*numbered(3), {"source": "rows.jsonl:4", "row": row}], section(max_malformed_rows=0))
    assert f"The first: rows.jsonl:4: {words}" in str(caught.value)


def test_too_many_malformed_rows_stop_the_stage_and_the_first_is_named(section):
    rows = [
        *numbered(5),
        {"source": "a.csv:7", "unreadable": "{oops", "why": "column 2: no"},
        {"source": "a.csv:9", "row": None},
    ]
    assert [reason for _, reason, _ in clean_rows(rows, section(max_malformed_rows=2)).rejected] == ["malformed"] * 2
    with pytest.raises(UserError) as caught:
        clean_rows(rows, section(max_malformed_rows=1))
    text = str(caught.value)
    assert "malformed rows: 2, more than clean.max_malformed_rows (1)" in text
    assert "The first: a.csv:7: it cannot be read: column 2: no" in text


def mixed_lot() -> list[dict]:
    """Shuffles good rows, all malformed ones, unreadable lines and random JSON, as they are read from a file."""
    rng = random.Random(0)
    scalars = [None, True, -1, 1e308, "", "text\x00", LONE, "🦜\u2028"]

    def anything(depth):
        kind = rng.random()
        if depth == 0 or kind < 0.4:
            return rng.choice(scalars)
        if kind < 0.6:
            return [anything(depth - 1) for _ in range(rng.randint(0, 3))]
        names = ["messages", "prompt", "completion", "instruction", "input", "output", "role", "content", f"{LONE}"]
        return {name: anything(depth - 1) for name in rng.sample(names, rng.randint(0, 6))}

    deep = json.loads("[" * 500 + "]" * 500)
    good = [pair(f"{rng.choice(scalars)} {n}", f"def f():\n    return {n} # {LONE}") for n in range(200)]
    rows = [
        {"row": row}
        for row in (*good, *good[:20], pair(completion="x"), deep, *(row for row, _ in MALFORMED), *TOOL_CALLS)
    ]
    rows += [{"row": anything(4)} for _ in range(500)]
    rows += [{"unreadable": text, "why": "no"} for text in ("", "{", "\x00", LONE)]
    rng.shuffle(rows)
    return [json.loads(json.dumps({"source": f"lot.jsonl:{n}", **row})) for n, row in enumerate(rows, 1)]


def test_every_row_is_kept_or_rejected_with_its_source(section, tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    rows = mixed_lot()
    cleaned = clean_rows(rows, section())
    kept = [record for records in cleaned.splits.values() for record in records]
    assert sorted(r.source for r in (*kept, *(r for r, *_ in cleaned.rejected))) == sorted(
        row["source"] for row in rows
    )
    counted = cleaned.metrics["rows"]
    assert counted["read"] == len(rows) == counted["kept"] + sum(counted["rejected"].values())
    assert counted["kept"] == len(kept) >= 200
    assert counted["rejected"]["duplicate"] >= 20
    assert counted["rejected"]["malformed"] >= len(MALFORMED) + 4
    assert counted["rejected"]["tool_call"] >= len(TOOL_CALLS)
    # All of it can also be written, lone surrogates too.
    write_json(RAW / "format.json", LAYOUT)
    write_raw(rows, RAW)
    main(params())
    assert [r.source for r in next(read_records(CLEAN / "rejected.parquet"))] == [
        r.source for r, *_ in cleaned.rejected
    ]


def test_one_of_several_equal_conversations_is_kept(section):
    rows = rows_of(pair(), chat(*to_messages(pair())), pair("Another"), pair())
    cleaned = clean_rows(rows, section())
    assert [(r.source, reason) for r, reason, _ in cleaned.rejected] == [
        ("rows.jsonl:2", "duplicate"),
        ("rows.jsonl:4", "duplicate"),
    ]
    assert len(splits_by_id(cleaned)) == 2


def test_no_conversation_is_in_two_splits(section):
    cleaned = clean_rows([*numbered(300), *numbered(300)], section(validation_fraction=0.3, test_fraction=0.3))
    ids = [record.id for records in cleaned.splits.values() for record in records]
    assert len(ids) == len(set(ids)) == 300


def test_the_id_depends_only_on_the_messages():
    messages = to_messages(pair())
    assert content_id(messages) == content_id([dict(reversed(message.items())) for message in messages])
    variants = [pair("Double it "), pair(completion=CODE + "\n"), chat(SYSTEM, *messages)]
    assert len({content_id(messages), *(content_id(to_messages(variant)) for variant in variants)}) == 4


def test_more_rows_or_another_order_move_no_record_to_another_split(section):
    rows = numbered(1500)
    small, grown = clean_rows(rows[:500], section()), clean_rows(rows, section())
    random.Random(0).shuffle(rows)
    before, after = splits_by_id(small), splits_by_id(grown)
    assert set(before.values()) == set(SPLITS)
    assert before.items() < after.items()
    assert splits_by_id(clean_rows(rows, section())) == after


def test_a_larger_validation_split_leaves_the_test_split_unchanged(section):
    few, many = (splits_by_id(clean_rows(numbered(500), section(validation_fraction=f))) for f in (0.05, 0.5))
    assert [i for i, split in few.items() if split == "test"] == [i for i, split in many.items() if split == "test"]


@pytest.mark.parametrize(("validation", "test"), [(0.04, 0.1), (0.2, 0.3), (0, 0.5)])
def test_the_splits_have_the_sizes_that_params_asks_for(validation, test):
    count = 5000
    ids = [content_id(to_messages(row["row"])) for row in numbered(count)]
    expected = {"train": 1 - validation - test, "validation": validation, "test": test}
    # Also among the lower half of the ids, because the duplicate with the lowest id is kept.
    for sample in (ids, [i for i in ids if i < "8"]):
        sizes = Counter(split_of(i, validation, test) for i in sample)
        for split, share in expected.items():
            error = math.sqrt(len(sample) * share * (1 - share))
            assert abs(sizes[split] - len(sample) * share) <= 4 * error, split


RUN = """
import json, os, sys
from stages import clean
from stages.core.params import Params
os.chdir(sys.argv[1])
print(clean.main(Params.model_validate(json.loads(sys.argv[2]))).message)
print("heavy:", sorted({"torch", "transformers", "datasets", "mistral_common"} & sys.modules.keys()))
"""


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty working directory with 120 good rows, one short one and a duplicate in data/raw."""
    monkeypatch.chdir(tmp_path)
    write_json(RAW / "format.json", LAYOUT)
    rows = [
        *numbered(120),
        {"source": "z:1", "row": pair(completion="x")},
        {"source": "z:2", "row": numbered(1)[0]["row"]},
    ]
    write_raw(rows, RAW)
    return tmp_path


def test_the_stage_writes_four_parquet_files_and_its_metrics(raw, params):
    assert "120 of 122 rows kept" in main(params()).message
    names = {path.name for path in CLEAN.iterdir()}
    assert names == {"train.parquet", "validation.parquet", "test.parquet", "rejected.parquet"}
    metrics = read_json(METRICS / "clean.json")
    assert metrics["rows"] == {"read": 122, "kept": 120, "rejected": {"duplicate": 1, "too_short": 1}}
    expected = clean_rows([*read_raw_rows(RAW / "rows-00000.jsonl")], params().clean)
    for split in SPLITS:
        table = pyarrow.parquet.read_table(CLEAN / f"{split}.parquet")
        assert table.column_names == ["id", "messages", "source"]
        assert table.num_rows == metrics["splits"][split]
        assert next(read_records(CLEAN / f"{split}.parquet")) == expected.splits[split]
    rejected = pyarrow.parquet.read_table(CLEAN / "rejected.parquet")
    assert rejected.column_names == ["id", "messages", "source", "reason", "detail"]
    assert list(zip(*rejected.select(["source", "reason"]).to_pydict().values(), strict=True)) == [
        ("z:1", "too_short"),
        ("z:2", "duplicate"),
    ]


@pytest.mark.parametrize("documents", [1, 12])
@pytest.mark.parametrize("count", [120, 400])
def test_small_splits_and_a_single_document_are_named_and_stop_nothing(raw, params, capsys, documents, count):
    rows = [each | {"source": f"{line % documents}.jsonl:{line}"} for line, each in enumerate(numbered(count), 1)]
    write_raw(rows, RAW)
    assert "rows kept" in main(params(validation_fraction=0.1, test_fraction=0.2)).message
    said = capsys.readouterr().out
    assert ("clean: only " in said) == (count == 120)
    assert ("clean: all test rows come from one document, 0.jsonl," in said) == (documents == 1)


def test_if_no_row_is_rejected_the_file_is_empty_with_the_same_columns(raw, params):
    write_raw(numbered(120), RAW)
    main(params())
    table = pyarrow.parquet.read_table(CLEAN / "rejected.parquet")
    assert (table.num_rows, table.column_names) == (0, ["id", "messages", "source", "reason", "detail"])


def test_a_split_without_rows_is_refused_before_anything_is_written(raw, params):
    write_raw(numbered(4), RAW)
    with pytest.raises(UserError, match="no row is left for the .*(train|validation|test) split"):
        main(params(validation_fraction=0.0001))
    assert not CLEAN.exists()
    assert not METRICS.exists()


@pytest.mark.parametrize(
    ("count", "fractions"), [(4, {}), (30, {"validation_fraction": 0.001}), (12, {"test_fraction": 0.01}), (3, {})]
)
def test_the_fractions_that_the_message_names_give_each_split_rows(raw, params, count, fractions):
    write_raw(numbered(count), RAW)
    with pytest.raises(UserError) as caught:
        main(params(**fractions))
    named = dict(re.findall(r"clean\.(\w+_fraction): ([\d.]+)", str(caught.value)))
    main(params(**fractions | {name: float(value) for name, value in named.items()}))
    sizes = [pyarrow.parquet.read_metadata(CLEAN / f"{split}.parquet").num_rows for split in SPLITS]
    assert "gives {} train, {} validation and {} test".format(*sizes) in str(caught.value)


def test_when_no_row_is_kept_the_reasons_and_their_remedies_are_named(raw, params):
    poems = [pair(f"Write poem {n}", f"Roses are red, and this is number {n}.") for n in range(5)]
    write_raw(rows_of(*poems, pair("Short", "x"), *[{"prompt": 3} for _ in range(2)]), RAW)
    with pytest.raises(UserError) as caught:
        main(params())
    assert str(caught.value).splitlines() == [
        "none of 8 rows can be kept.",
        "  5 rows: an answer is no Python (code_does_not_parse). If none should be, set clean.check_code: false",
        "  2 rows: it does not fit the data's format (malformed). Correct data.format or data.columns",
        "  1 row: an answer is shorter than clean.min_characters (too_short). To keep such rows, lower that",
    ]


def test_too_few_rows_of_which_none_was_rejected_ask_for_more(raw, params):
    write_raw(numbered(1), RAW)
    with pytest.raises(
        UserError, match="^only 1 of 1 row can be kept, and three splits need more. Raise data.limit, or"
    ):
        main(params())


DETAILED = {
    "malformed": ({"prompt": 3}, "the columns are prompt; completion is missing"),
    "tool_call": (
        chat({"role": "user", "content": "?"}, {"role": "tool", "content": "3"}),
        "a tool's result belongs to no call before it",
    ),
    "turn_order": (
        chat({"role": "user", "content": "?"}, *[{"role": "assistant", "content": CODE}] * 2),
        "two turns of one role follow each other",
    ),
    "no_answer": (
        chat({"role": "user", "content": "?"}, {"role": "user", "content": "??"}),
        "ends with the user, no answer of the assistant",
    ),
    "secret": (pair(completion=CODE + "\nKEY = 'AK" + "IAQWERTYUIOPASDFGH'"), "1 SECRET"),
    "personal_data": (pair("Ask jane.doe@mail.firm.co.uk or joe.roe@mail.firm.co.uk"), "2 EMAIL"),
    "empty_turn": (pair(prompt=" \n"), "turn 1 of 2, of the role user"),
    "no_trained_turn": (
        chat({"role": "user", "content": "?"}, {"role": "assistant", "content": CODE, "weight": 0}),
        "answers that are trained: 0 of 2 turns",
    ),
    "too_short": (pair(completion="x = 1"), "answer 1 of 1 has 5 characters, clean.min_characters is 20"),
    "too_long": (pair(prompt="x" * 4000), f"{4000 + len(CODE)} characters, clean.max_characters is 4000"),
    "refusal": (pair(completion="I'm sorry, but I can't help with that."), "I'm sorry, but I can't help with that."),
    "code_does_not_parse": (pair(completion=CODE + "\nreturn 2 *"), "answer 1, line 3: invalid syntax"),
    "tests_do_not_parse": (pair() | {"tests": "assert double(2 == 4"}, "line 1: '(' was never closed"),
    "contaminated": (pair(" ".join(WORDS)), f"b.txt:1, 100%: {' '.join(WORDS)}"),
    "duplicate": (pair("Again", CODE + " # again"), None),
    "near_duplicate": (pair("Write it", f"{CODE} # {' '.join(WORDS[::-1])}"), None),
}


@pytest.mark.parametrize("reason", DETAILED)
def test_the_detail_says_why_for_every_reason(raw, section, reason):
    """Of two like rows the detail names the id of the one that stays."""
    row, expected = DETAILED[reason]
    DECONTAMINATE.mkdir(parents=True)
    (DECONTAMINATE / "b.txt").write_text(" ".join(WORDS))
    rows = [row]
    if reason == "duplicate":
        rows.append(pair("Again ", row["completion"]))
    if reason == "near_duplicate":
        rows.append(pair("Write it", row["completion"] + "!"))
    keys = {"secrets": "reject", "personal_data": "reject", "decontaminate": ["b.txt"]}
    cleaned = clean_rows(rows_of(*rows), section(**keys, near_duplicate_threshold=0.8))
    (rejected,) = cleaned.rejected
    (kept,) = [record for records in cleaned.splits.values() for record in records] or [None]
    assert (rejected.reason, rejected.detail) == (reason, kept.id if expected is None else expected)


def test_every_reason_has_an_example_of_its_detail():
    assert EXPLAINED.keys() == DETAILED.keys()


def test_the_detail_of_a_malformed_row_shows_nothing_private(raw, section):
    row = {"messages": [{"role": "AK" + "IAQWERTYUIOPASDFGH \ud800" + "x" * 500, "content": "?"}]}
    (rejected,) = clean_rows(rows_of(row), section(secrets="redact"), "messages").rejected
    assert "IAQWERTY" not in rejected.detail
    assert len(rejected.detail) <= 150


def test_each_reason_to_reject_a_row_is_explained():
    reasons = {rule.__name__ for rule in RULES} | {"secret", "personal_data"}
    reasons |= {
        "turn_order",
        "no_answer",
        "tool_call",
        "malformed",
        "tests_do_not_parse",
        "contaminated",
        "duplicate",
        "near_duplicate",
    }
    assert EXPLAINED.keys() == reasons


def test_two_runs_write_the_same_bytes_without_importing_torch(raw, python_at, params):
    with open(RAW / "rows-00000.jsonl", "a") as file:
        for number, row in enumerate(
            [pair(f"{list(range(200))} {end}", CODE + " # a@b.de 93.184.216.34") for end in "ABCD"]
        ):
            file.write(json.dumps({"source": f"zz:{number}", "row": row}) + "\n")
    everything = {"fix_text": True, "secrets": "redact", "personal_data": "redact", "near_duplicate_threshold": 0.9}
    written = []
    for seed in ("1", "2"):
        done = python_at("", RUN, str(raw), params(**everything).model_dump_json(), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "heavy: []" in done.stdout
        files = [*CLEAN.iterdir(), METRICS / "clean.json", METRICS / "clean.rejected.json"]
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) == 6
    metrics = read_json(METRICS / "clean.json")
    assert metrics["redacted"] == {"EMAIL": 4, "IP": 4}
    assert metrics["rows"]["rejected"]["near_duplicate"] >= 3
    assert written[0] == written[1]
    assert not [name for name, content in written[0].items() if str(raw).encode() in content]


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(raw, python_at, params):
    """Eight shards, with near-duplicates in different shards."""
    texts = [f"Return {' '.join(map(str, range(n, n + 60)))}" for n in range(0, 40_000, 200)]
    rows = [{"source": f"x:{n}", "row": pair(text, CODE)} for n, text in enumerate([*texts, *(t + "!" for t in texts)])]
    write_raw(rows, RAW, shard_rows=50)
    written = []
    for workers in (1, 2, 3):
        chosen = params(near_duplicate_threshold=0.8)
        chosen = chosen.model_copy(update={"machine": chosen.machine.model_copy(update={"workers": workers})})
        done = python_at("", RUN, str(raw), chosen.model_dump_json())
        assert done.returncode == 0, done.stderr
        assert "200 of 400 rows kept" in done.stdout
        files = [*CLEAN.iterdir(), METRICS / "clean.json", METRICS / "clean.rejected.json"]
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) == 6
    assert written[0] == written[1] == written[2]


def test_the_size_of_the_shards_changes_no_result(section):
    rows = [*numbered(100), *numbered(30), *rows_of(pair(completion="x"), "not an object")]
    whole, parts = (clean_rows(rows, section(), shard_rows=count) for count in (1000, 7))
    assert whole == parts
    assert whole.metrics["sources"] == {
        "rows.jsonl": {"read": 132, "rejected": 32, **{split: len(records) for split, records in whole.splits.items()}}
    }


def test_only_the_largest_sources_are_counted_one_by_one(section):
    rows = [row | {"source": f"{n % 150:03}.csv:{n}"} for n, row in enumerate(numbered(400))]
    sources = clean_rows(rows, section()).metrics["sources"]
    assert len(sources) == 101
    assert [sources["000.csv"]["read"], sources["099.csv"]["read"], sources["(others)"]["read"]] == [3, 3, 100]
    assert sum(counts[split] for counts in sources.values() for split in SPLITS) == 400


def test_three_rows_that_each_rule_rejected_are_shown(raw, params):
    extra = [{"source": f"y:{n}", "row": pair("p" * n, "x" * (n % 19))} for n in range(1, 400)]
    write_raw([*numbered(120), *extra], RAW)
    main(params())
    shown = read_json(METRICS / "clean.rejected.json")
    assert {reason: len(rows) for reason, rows in shown.items()} == {"empty_turn": 3, "too_short": 3}
    for row in (row for rows in shown.values() for row in rows):
        number = int(row["source"].removeprefix("y:"))
        assert len(row["text"]) <= 300
        assert row["text"].startswith(f"user: {'p' * min(number, 290)}")


def test_a_row_that_stands_for_more_than_twenty_near_duplicates_is_named(raw, params, capsys):
    text = " ".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(60))
    copies = [pair(f"Write {n}", f"# {chr(n)} {text}") for n in range(1000, 1022)]
    write_raw([*numbered(120), *({"source": f"spam.csv:{n}", "row": row} for n, row in enumerate(copies))], RAW)
    main(params(near_duplicate_threshold=0.95))
    (absorbed,) = read_json(METRICS / "clean.json")["absorbed"].items()
    assert absorbed[0].startswith("spam.csv:")
    assert absorbed[1] == 21
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "near-duplicates went" in line]
    assert line.startswith(f"clean: more than 20 near-duplicates went for one row: {absorbed[0]} for 21. Look at them")


def test_twenty_near_duplicates_of_a_row_are_not_named_and_many_such_rows_are_counted():
    tally = Tally()
    tally.absorbed = Counter({f"a.csv:{n}": 20 + n for n in range(8)})
    assert "a.csv:7 for 27, a.csv:6 for 26, a.csv:5 for 25, a.csv:4 for 24, a.csv:3 for 23, and 2 more rows." in (
        tally.absorbed_line()
    )
    tally.absorbed = Counter({"a.csv:1": 20})
    assert tally.absorbed_line() is None
    assert tally.metrics()["absorbed"] == {}


def test_a_line_separator_inside_a_row_starts_no_new_row(tmp_path):
    path = Path(tmp_path / "rows.jsonl")
    path.write_text(
        json.dumps({"source": "a:1", "row": pair("a\u2028b\x85c\x0cd")}, ensure_ascii=False) + "\n", "utf-8"
    )
    assert [row["row"]["prompt"] for row in read_raw_rows(path)] == ["a\u2028b\x85c\x0cd"]


def test_tests_and_kept_fields_reach_only_the_test_split(section):
    rows = numbered(200)
    for number, line in enumerate(rows):
        line["row"] |= {"tests": ["x = answer()", f"assert x == {number}"], "level": number % 3, "other": "dropped"}
    cleaned = clean_rows(rows, section(keep_fields=["level"]))
    sources = {line["source"]: line["row"] for line in rows}
    assert cleaned.splits["test"]
    for record in cleaned.splits["test"]:
        row = sources[record.source]
        assert record.tests == "\n".join(row["tests"])
        assert record.fields == {"level": str(row["level"])}
    plain = clean_rows(numbered(200), section())
    assert all(not record.tests and not record.fields for record in cleaned.splits["train"])
    assert [record.id for record in cleaned.splits["test"]] == [record.id for record in plain.splits["test"]]


def test_data_without_tests_has_no_column_for_them(raw, params):
    """The train split has the same bytes with and without tests in the data."""
    shutil.rmtree(RAW)
    write_raw(numbered(100), RAW)
    write_json(RAW / "format.json", LAYOUT)
    main(params())
    assert pyarrow.parquet.read_schema(CLEAN / "test.parquet").names == ["id", "messages", "source"]
    train = (CLEAN / "train.parquet").read_bytes()
    write_raw([line | {"row": line["row"] | {"tests": "pass", "level": "a"}} for line in numbered(100)], RAW)
    main(params(keep_fields=["level"]))
    assert pyarrow.parquet.read_schema(CLEAN / "test.parquet").names == ["id", "messages", "source", "level", "tests"]
    assert (CLEAN / "train.parquet").read_bytes() == train


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert double(1) == 2", None),
        (["assert double(1) == 2", "assert double(2) == 4"], None),
        ("", None),
        ([], None),
        (None, None),
        ("assert double(1) ==", "tests_do_not_parse"),
        (7, "malformed"),
        ([1], "malformed"),
        ({"a": "pass"}, "malformed"),
    ],
)
def test_tests_are_python_or_the_row_is_rejected(section, tests, reason):
    cleaned = clean_rows(rows_of(pair() | {"tests": tests}), section())
    assert [rejection.reason for rejection in cleaned.rejected] == ([reason] if reason else [])


def test_a_field_that_is_neither_text_nor_number_is_malformed(section):
    cleaned = clean_rows(rows_of(pair() | {"level": ["a"]}), section(keep_fields=["level"]))
    assert [rejection.reason for rejection in cleaned.rejected] == ["malformed"]


def test_a_secret_in_tests_is_found_like_one_in_an_answer(section):
    key = "AKIA" + "IOSFODNN7" + "EXAMPLF"
    row = rows_of(pair() | {"tests": f"key = '{key}'\nassert double(1) == 2"})
    assert [rejection.reason for rejection in clean_rows(row, section(secrets="reject")).rejected] == ["secret"]
    redacted = clean_rows(row, section(secrets="redact", validation_fraction=0.01, test_fraction=0.98))
    (record,) = redacted.splits["test"]
    assert record.tests == "key = '<SECRET>'\nassert double(1) == 2"


def test_a_secret_in_a_kept_field_is_found_like_one_in_an_answer(section):
    key = "AKIA" + "IOSFODNN7" + "EXAMPLF"
    rows = [line | {"row": line["row"] | {"level": f"hard, {key}, a@b.de"}} for line in numbered(60)]
    choose = {"keep_fields": ["level"], "test_fraction": 0.5}
    assert clean_rows(rows, section(secrets="reject", **choose)).metrics["rows"]["rejected"] == {"secret": 60}
    assert clean_rows(rows, section(personal_data="reject", **choose)).metrics["rows"]["rejected"] == {
        "personal_data": 60
    }
    redacted = clean_rows(rows, section(secrets="redact", personal_data="redact", **choose))
    assert redacted.metrics["redacted"] == {"SECRET": 60, "EMAIL": 60}
    assert {record.fields["level"] for record in redacted.splits["test"]} == {"hard, <SECRET>, <EMAIL>"}


def test_a_malformed_row_is_named_without_the_secret_in_it(section):
    key = "AKIA" + "IOSFODNN7" + "EXAMPLF"
    with pytest.raises(UserError) as caught:
        clean_rows([*numbered(3), *rows_of({key: "x"})], section(max_malformed_rows=0))
    assert "The first: rows.jsonl:1: the columns are <SECRET>; prompt is missing" in str(caught.value)


def test_repaired_turns_and_unread_columns_are_counted_and_named(raw, params):
    odd = [chat(ASSISTANT, USER, ASSISTANT), chat(USER, USER, ASSISTANT), chat(SYSTEM | {"content": " "}, USER, USER)]
    rows = [pair(f"Return {n}", f"{CODE}  # {n}") | {"id": n, "level": "a", "": "x", "note": None} for n in range(90)]
    write_raw(rows_of(*rows, *odd), RAW)
    said = main(params(min_characters=1, check_code=False, keep_fields=["level"])).message
    assert said.endswith("; turns repaired: begins_with_assistant (1); not read: '' (90), id (90)")
    metrics = read_json(METRICS / "clean.json")
    assert metrics["turn_order"] == {
        "repaired": {"begins_with_assistant": 1},
        "rejected": {"repeated_role": 1, "empty_system": 1, "ends_with_user": 1, "no_answer": 1},
    }
    assert metrics["rows"]["rejected"] == {"turn_order": 1, "no_answer": 1}
    assert metrics["unread"] == {"": 90, "id": 90}
    rejected = pyarrow.parquet.read_table(CLEAN / "rejected.parquet").to_pylist()
    assert [row["detail"] for row in rejected] == [
        "two turns of one role follow each other",
        "an empty system turn, ends with the user, no answer of the assistant",
    ]
    main(params(min_characters=1, check_code=False, repair_turns="merge"))
    assert read_json(METRICS / "clean.json")["turn_order"]["repaired"]["repeated_role"] == 1


def test_columns_with_names_that_have_a_meaning_elsewhere_reject_no_ordinary_row(section):
    odd = {"tests": {"mri": "none"}, "weight": "5 kg", "source": ["web", 3], "id": None, "reason": "x", "train": 1.5}
    rows = [line | {"row": line["row"] | odd} for line in numbered(9)]
    cleaned = clean_rows(rows, section(max_malformed_rows=0), layout_of("prompt-completion", tests=False))
    assert cleaned.metrics["rows"]["kept"] == 9
    assert cleaned.metrics["unread"] == dict.fromkeys(("tests", "weight", "source", "reason", "train"), 9)


def test_only_the_most_frequent_unread_columns_are_counted_one_by_one(section):
    rows = [line | {"row": line["row"] | {f"column {n}": 1, "id": n}} for n, line in enumerate(numbered(120))]
    unread = clean_rows(rows, section()).metrics["unread"]
    assert (len(unread), unread["id"]) == (100, 120)


def test_a_row_in_which_nothing_is_trained_is_rejected(section):
    turns = to_messages(pair())
    skipped = turns[1] | {"weight": 0}
    cleaned = clean_rows(rows_of(chat(turns[0], skipped), chat(*turns[:1], skipped, *turns)), section())
    assert [reason for _, reason, _ in cleaned.rejected] == ["no_trained_turn"]
    kept = [record for records in cleaned.splits.values() for record in records]
    assert [message.get("train") for record in kept for message in record.messages] == [None, False, None, None]


@pytest.mark.parametrize("context", ["x", "As an AI language model, I cannot do that.", "def double(:"])
def test_the_rules_on_answers_let_an_answer_be_that_is_not_trained(section, context):
    turns = to_messages(pair())
    marked = [turns[0], {"role": "assistant", "content": context, "train": False}, *turns]
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in marked]
    layout = {"layout": "messages"}
    assert not clean_rows(rows_of({"messages": marked}), section(), **layout).rejected
    assert clean_rows(rows_of({"messages": bare}), section(), **layout).rejected


def test_whether_turns_are_trained_moves_no_record_and_changes_no_file_of_other_data(section):
    plain = [{"messages": to_messages(row["row"])} for row in numbered(60)]
    first = [dict(turn) for turn in plain[0]["messages"]]
    longer = [*plain, {"messages": first + plain[1]["messages"]}]
    marked = [*plain, {"messages": [first[0], first[1] | {"train": False}, *plain[1]["messages"]]}]
    one, two = (clean_rows(rows_of(*rows), section(), layout="messages") for rows in (longer, marked))
    assert splits_by_id(one) == splits_by_id(two)
    texts = {record.id: record.messages for records in one.splits.values() for record in records}
    flagged = [r for records in two.splits.values() for r in records if r.messages != texts[r.id]]
    assert [[message.get("train") for message in record.messages] for record in flagged] == [[None, False, None, None]]


def test_shards_with_and_without_untrained_turns_go_into_one_file(section):
    rows = [{"messages": to_messages(row["row"])} for row in numbered(9)]
    rows[4]["messages"] = [*rows[4]["messages"], *rows[3]["messages"]]
    rows[4]["messages"][1] = rows[4]["messages"][1] | {"weight": 0}
    runs = [clean_rows(rows_of(*rows), section(), layout="messages", shard_rows=size) for size in (2, 100)]
    assert runs[0].splits == runs[1].splits
    assert sum(len(records) for records in runs[0].splits.values()) == 9


STORY = "The old lighthouse keeper climbed the stairs every evening and lit the lamp before the first ship came in. "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STORY, None),
        ("Short.", "too_short"),
        (STORY * 40, "too_long"),
        (" \n", "empty_turn"),
        ("I'm sorry, but I cannot help you, said the keeper.", None),  # no answer, so no refusal
        ("As an AI language model, I cannot answer that.", None),
        ("[INST] What? [/INST] That.", "malformed"),
        (None, "malformed"),
    ],
)
def test_a_text_is_cleaned_as_far_as_the_rules_are_about_texts(section, text, reason):
    cleaned = clean_rows(rows_of({"text": text}), section(check_code="auto"), layout="text")
    assert [each.reason for each in cleaned.rejected] == [reason][: reason is not None]


def test_texts_are_redacted_and_duplicates_among_them_found(section):
    near = STORY + "The sea was calm and the night was long, and nobody else was there to see it. " * 3
    rows = rows_of(
        {"text": STORY}, {"text": f" {STORY}"}, {"text": near}, {"text": near + "Then."}, {"text": "a@b.org " * 9}
    )
    options = {"check_code": False, "near_duplicate_threshold": 0.8, "personal_data": "redact"}
    cleaned = clean_rows(rows, section(**options), layout="text")
    assert Counter(each.reason for each in cleaned.rejected) == {"duplicate": 1, "near_duplicate": 1}
    kept = [record.messages for records in cleaned.splits.values() for record in records]
    assert all(len(messages) == 1 and messages[0]["role"] == "text" for messages in kept)
    assert [{"role": "text", "content": ("<EMAIL> " * 9)}] in kept


def test_conversations_with_tools_are_kept_split_and_redacted(section):
    """The list of tools is the same in all rows, so it makes none of them a near-duplicate."""
    options = {"check_code": "auto", "near_duplicate_threshold": 0.7, "personal_data": "redact", "min_characters": 1}
    rows = [row | {"tools": LONG_TOOLS} for row in tool_rows(60, pieces=PIECES) if "tools" in row]
    rows[0]["messages"] = [*to_messages(pair("Whom?", "Write to a@b.org about it."))]
    alike = [{"messages": to_messages(pair(f"Q{n}", f"{hash_text(n)} is it.")), "tools": LONG_TOOLS} for n in range(9)]
    for workers in (1, 2):
        cleaned = clean_rows(
            rows_of(*rows, *alike), section(**options), layout="messages", workers=workers, shard_rows=20
        )
        kept = [record.messages for records in cleaned.splits.values() for record in records]
        assert not [each for each in cleaned.rejected if each.reason in ("malformed", "tool_call")]
        assert sum(messages[-1]["content"].endswith("is it.") for messages in kept) == 9
    assert [messages for messages in kept if messages[-1]["content"] == "Write to <EMAIL> about it."]
    assert all(messages[0]["role"] == "tools" for messages in kept)


def test_a_call_without_its_result_is_rejected_and_the_detail_says_why(section):
    call = {"role": "assistant", "tool_calls": [{"id": "abcde1234", "function": {"name": "f", "arguments": "{}"}}]}
    turns = to_messages(pair())
    cleaned = clean_rows(rows_of({"messages": [turns[0], call, turns[1]]}), section(), layout="messages")
    assert [each[1:] for each in cleaned.rejected] == [
        ("tool_call", "a call has no result, and the conversation continues")
    ]


def test_a_row_that_was_downloaded_is_not_nested_too_deeply_to_be_cleaned(tmp_path):
    """download_data reads JSON with fewer calls open, so it can read a little deeper."""
    path, limit = tmp_path / "rows-00000.jsonl", sys.getrecursionlimit()
    path.write_text('{"row": ' + "[" * 900 + "]" * 900 + "}\n")

    def with_calls_open(count: int) -> list[dict]:
        return with_calls_open(count - 1) if count else list(read_raw_rows(path))

    try:
        sys.setrecursionlimit(1000)
        assert len(with_calls_open(100)) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_the_names_of_what_is_not_read_are_shown_without_private_data(params_of):
    row = {"prompt": "a", "completion": "b", "anna@posteo.de": 1, "bob@posteo.de": 2, "note": 3}
    cleaned = clean_rows([{"source": "x:1", "row": row}], params_of(clean={"min_characters": 1}).clean)
    assert cleaned.metrics["unread"] == {"<EMAIL>": 2, "note": 1}
