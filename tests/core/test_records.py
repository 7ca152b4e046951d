"""A record's id and its split depend on its messages only. Their values are pinned: they are in every data set."""

import hashlib
from fractions import Fraction

import pytest

from stages.core.records import Record, content_id, is_raw_text, is_trained, read_records, split_of, with_trained_turns
from tests.support.data_files import write_records

MESSAGES = [{"role": "user", "content": "naïve, “ok”?"}, {"role": "assistant", "content": "1\n2"}]
CANONICAL = (
    r'[{"content":"na\u00efve, \u201cok\u201d?","role":"user"},'
    r'{"content":"1\n2","role":"assistant"}]'
)


def test_the_id_is_the_hash_of_canonical_json():
    assert content_id(MESSAGES) == hashlib.sha256(CANONICAL.encode()).hexdigest()[:32]
    assert content_id([{"content": "naïve, “ok”?", "role": "user"}, MESSAGES[1]]) == content_id(MESSAGES)
    assert content_id(MESSAGES[::-1]) != content_id(MESSAGES)


def test_the_id_does_not_say_which_turns_are_trained():
    assert content_id([MESSAGES[0], MESSAGES[1] | {"train": False}]) == content_id(MESSAGES)


def test_with_last_only_the_last_answer_is_trained():
    twice = [*MESSAGES, *MESSAGES]
    assert with_trained_turns(twice, "all") == twice
    assert with_trained_turns(twice, "last") == [MESSAGES[0], MESSAGES[1] | {"train": False}, *MESSAGES]
    calls = [MESSAGES[0], {"role": "tool_calls", "content": "[]"}, {"role": "tool", "content": "{}"}, MESSAGES[1]]
    assert with_trained_turns(calls, "last") == [calls[0], calls[1] | {"train": False}, *calls[2:]]
    assert with_trained_turns(calls[:3], "last") == calls[:3]
    for without_answer in ([{"role": "text", "content": "Once"}], MESSAGES[:1], []):
        assert with_trained_turns(without_answer, "last") == without_answer


@pytest.mark.parametrize("role", ["assistant", "tool_calls", "text", "user", "system", "tools", "tool"])
def test_answers_and_texts_are_trained_unless_they_are_marked(role):
    trained = role in ("assistant", "tool_calls", "text")
    assert is_trained({"role": role, "content": ""}) is trained
    assert is_trained({"role": role, "content": "", "train": True}) is trained
    assert is_trained({"role": role, "content": "", "train": False}) is False


def test_only_the_role_text_makes_a_text():
    assert is_raw_text([{"role": "text", "content": "user"}])
    assert not is_raw_text([{"role": "user", "content": "text"}, {"role": "text", "content": ""}])


def test_a_file_has_the_field_train_only_if_a_turn_is_not_trained(tmp_path):
    import pyarrow.parquet

    flagged = [MESSAGES[0], MESSAGES[1] | {"train": False}, *MESSAGES]
    for messages, fields in ((MESSAGES, {"role", "content"}), (flagged, {"role", "content", "train"})):
        path = tmp_path / f"{len(messages)}.parquet"
        write_records(path, [Record("0" * 32, messages, "x:1")])
        assert {part.name for part in pyarrow.parquet.read_schema(path).field("messages").type.value_type} == fields
        assert next(read_records(path))[0].messages == messages


def test_the_split_is_where_the_hash_falls_between_0_and_1():
    """The first fraction is for test, the next for validation. A range includes its lower end only."""
    for name in ("a", "b", "0" * 32):
        first = hashlib.sha256(f"split:{name}".encode()).hexdigest()[:16]
        place = float(Fraction(int(first, 16), 2**64))
        assert split_of(name, 0.0, place) == "train"
        assert split_of(name, 0.0, place + 1e-9) == "test"
        assert split_of(name, place, 0.0) == "train"
        assert split_of(name, place + 1e-9, 0.0) == "validation"
        assert split_of(name, 1.0, 0.0) == "validation"
        assert split_of(name, 0.0, place / 2) == "train"
        assert split_of(name, place / 2 + 1e-9, place / 2) == "validation"
