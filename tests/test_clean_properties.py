"""Every row is kept or rejected, whatever it holds, and only a user's mistake stops the stage."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages._clean.tally import LENGTH_EDGES, count_lengths
from stages.core.records import SPLITS, content_id
from stages.runtime.errors import UserError
from tests.support.cleaning import clean_rows

# Text with what the rules look for, mixed with any other text, lone surrogates too.
PIECES = st.sampled_from(
    [
        *(
            "```python\n",
            "```",
            "def f():\n    return 1",
            "\x00",
            "â€™",
            "As an AI language model",
            " ",
            "🦜",
            "\ud800",
        ),
        *("a@b.de", "93.184.216.34", "2a02:8106:21:4e00::7", "DE89370400440532013000", "+49 170 1234567", "999.1.1.1"),
        *("AK" + "IA" + "QWERTYUIOPASDFGH", "-----BEGIN PRIVATE " + "KEY-----", "https://a:" + "bcdefghij@k", "eyJ"),
    ]
)
ANY_TEXT = st.text(st.characters(), max_size=30)
TEXT = st.lists(PIECES | ANY_TEXT, max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT | JSON})
TALK = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=2).map(
    lambda pairs: [
        {"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)
    ]
)
ROW = (
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT})
    | st.fixed_dictionaries({"instruction": TEXT, "input": TEXT | st.none(), "output": TEXT})
    | st.fixed_dictionaries({"messages": TALK})
    | st.fixed_dictionaries({"messages": st.lists(TURN | JSON, max_size=3) | JSON})
    | st.fixed_dictionaries({"prompt": JSON, "completion": JSON})
    | JSON
)
GOOD = st.builds(
    lambda text, number: {"prompt": f"Return it. {text}", "completion": f"def answer():\n    return {number}"},
    st.just("") | TEXT,
    st.integers(0, 9),
)
LINE = (
    st.fixed_dictionaries({"row": GOOD})
    | st.fixed_dictionaries({"row": ROW})
    | st.fixed_dictionaries({"unreadable": TEXT, "why": TEXT})
)
LAYOUT = st.sampled_from(["prompt-completion", "prompt-completion", "messages", "alpaca", "sharegpt"])
CHOICE = st.sampled_from(["reject", "redact", "keep"])
SECTION = st.fixed_dictionaries(
    {
        **{"min_characters": st.sampled_from([0, 20]), "max_characters": st.sampled_from([60, 4000])},
        **{name: st.booleans() for name in ("check_code", "fix_text", "reject_refusals")},
        **{"secrets": CHOICE, "personal_data": CHOICE, "max_malformed_rows": st.sampled_from([9, 1000])},
        "near_duplicate_threshold": st.sampled_from([None, 0.5, 0.8, 0.99]),
    }
)


# 150 examples of up to 40 rows make a few thousand. They are the same each time, so that a failure repeats.
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(LINE, min_size=10, max_size=40), section=SECTION, layout=LAYOUT)
def test_the_rows_that_are_read_are_those_kept_and_those_rejected(params_of, lines, section, layout):
    rows = [{"source": f"x:{number}", **line} for number, line in enumerate(lines)]
    rows = [json.loads(json.dumps(row)) for row in rows]  # as they come back from data/raw
    try:
        cleaned = clean_rows(rows, params_of(clean=section).clean, layout, shard_rows=15)
    except UserError as error:
        assert "malformed rows" in str(error)  # noqa: PT017
        return
    kept = [record for split in SPLITS for record in cleaned.splits[split]]
    everything = [*kept, *(rejection.record for rejection in cleaned.rejected)]
    assert sorted(record.source for record in everything) == sorted(row["source"] for row in rows)
    assert all(record.id == content_id(record.messages) for record in everything)
    assert len({record.id for record in kept}) == len(kept)
    metrics = cleaned.metrics
    assert metrics["rows"]["read"] == len(rows) == len(kept) + sum(metrics["rows"]["rejected"].values())
    assert {split: sum(counts.values()) for split, counts in metrics["characters"].items()} == metrics["splits"]
    # What is written is UTF-8 and standard JSON.
    json.dumps([[record.messages for record in everything], metrics], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("characters", "bucket"),
    [(1, "to_00250"), (250, "to_00250"), (251, "to_00500"), (16000, "to_16000"), (16001, "longer")],
)
def test_a_bucket_ends_with_the_length_in_its_name(characters, bucket):
    counts = count_lengths(np.array([characters]))
    assert [name for name, count in counts.items() if count] == [bucket]
    assert len(counts) == len(LENGTH_EDGES) + 1
