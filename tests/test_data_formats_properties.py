"""Rows of every format through download_data's recognising and clean: none is lost, and no trained text is made up."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages._clean.formats import ROLES
from stages._download_data.columns import FORMATS
from stages._download_data.formats import Survey, recognise
from stages.core.records import SPLITS
from stages.runtime.errors import UserError
from tests.support.cleaning import clean_rows

# Each text is one that no other text holds, so that a trained text shows where it comes from.
TEXT = st.integers(0, 10**9).map(lambda number: f"Text {number}.")
NUMBER = st.integers(10**6, 10**9) | st.booleans() | st.integers(10**6, 10**9).map(lambda number: number + 0.5)
BLANK = st.sampled_from(["", " ", None])
PARTS = st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
ROLE = st.sampled_from([*ROLES, "Human", "ASSISTANT", "tool", "narrator"])
SAID = TEXT | TEXT | NUMBER | PARTS | BLANK
KEYS = st.sampled_from([("role", "content"), ("from", "value"), ("role", "text")])
TURN = st.builds(lambda keys, *values: dict(zip(keys, values, strict=True)), KEYS, ROLE, SAID)
PAIR_KEYS = st.sampled_from([("user", "assistant"), ("human", "gpt"), ("instruction", "output")])
EXCHANGE = st.builds(lambda keys, *values: dict(zip(keys, values, strict=True)), PAIR_KEYS, TEXT, SAID)
TALK = st.builds(
    lambda start, pairs, end: start + [turn for pair in pairs for turn in pair] + end,
    st.lists(TURN, max_size=1),
    st.lists(
        st.tuples(
            st.builds(lambda said: {"role": "user", "content": said}, SAID),
            st.builds(lambda said: {"from": "gpt", "value": said}, SAID),
        ),
        max_size=3,
    ),
    st.lists(TURN, max_size=1),
)
LIST = TALK | st.lists(TURN, max_size=5) | st.lists(EXCHANGE | st.lists(TEXT, min_size=2, max_size=2), max_size=2)
LIST = LIST | LIST.map(json.dumps) | LIST.map(str)
INST = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(
    lambda pairs: "".join(f"<s>[INST] {asked} [/INST] {answered}</s>" for asked, answered in pairs)
)
VALUES = {"conversation": LIST, "inst": INST | TEXT, "text": TEXT | BLANK, "user": SAID, "assistant": SAID}
OTHERS = {
    **{"system": TEXT | BLANK, "history": LIST, "context": SAID, "tests": st.just("assert f()") | TEXT | NUMBER},
    **{"id": st.integers(), "note": TEXT, "weight": NUMBER, "source": TEXT},
}


@st.composite
def data_sets(draw):
    """Rows of one format with its columns under one of their names, some other columns, and a few rows of anything."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    parts = FORMATS[name]
    names = {part: draw(st.sampled_from(columns)) for part, columns in parts.items()}
    others = draw(st.lists(st.sampled_from(sorted(OTHERS)), max_size=3, unique=True))
    row = st.fixed_dictionaries(
        {column: VALUES[part] for part, column in names.items()} | {other: OTHERS[other] for other in others}
    )
    some = draw(st.lists(row, min_size=3, max_size=8))
    return name, some + draw(st.lists(st.none() | TALK | st.dictionaries(TEXT, TEXT, max_size=2), max_size=2))


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=data_sets(), how=st.sampled_from(["drop", "trim", "merge"]))
def test_no_row_is_lost_and_no_trained_text_is_made_up(params_of, data, how):
    name, rows = data
    lines = [{"source": f"x:{number}", "row": row} for number, row in enumerate(rows)]
    params = params_of(
        data={"source": "file", "format": name},
        clean={"repair_turns": how, "min_characters": 0, "max_malformed_rows": 1000, "near_duplicate_threshold": None},
    )
    survey = Survey()
    for line in lines:
        survey.add(line)
    try:
        layout = recognise(survey, params.data) | {"python": False}
    except UserError as error:  # of all rows one column is null
        assert f"no row is {name}" in str(error)  # noqa: PT017
        return
    cleaned = clean_rows(lines, params.clean, layout)
    kept = [record for split in SPLITS for record in cleaned.splits[split]]
    rejected = cleaned.rejected
    assert sorted(r.source for r in (*kept, *(r.record for r in rejected))) == sorted(x["source"] for x in lines)
    counted = cleaned.metrics["rows"]
    assert counted["read"] == len(rows) == counted["kept"] + sum(counted["rejected"].values())
    for record in kept:
        row = rows[int(record.source.removeprefix("x:"))]
        text = json.dumps(row).casefold()  # Python writes True where JSON has true
        joined = how == "merge" or "'type'" in text or '"type' in text  # what may be joined with a blank line
        roles = [said["role"] for said in record.messages]
        assert roles == ["text"] or roles[roles[0] == "system" :] == ["user", "assistant"] * (len(roles) // 2)
        for said in record.messages:
            pieces = said["content"].split("\n\n") if joined or said["role"] == "user" else [said["content"]]
            assert all(json.dumps(piece)[1:-1].casefold() in text for piece in pieces), said
