"""Turns out of order are repaired as clean.repair_turns says, or the row is rejected."""

import pytest

from stages._clean.turn_order import FLAWS, MENDED, order_turns

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(letters: str) -> list[dict]:
    """Returns turns with the roles' first letters. Each text is its letter and its place; a capital is empty."""
    return [
        {"role": ROLES[letter.lower()], "content": "" if letter.isupper() else f"{letter}{place}"}
        for place, letter in enumerate(letters)
    ]


CASES = [
    # turns, flaws, {value of clean.repair_turns: the texts that stay, or the reason}
    ("ua", [], ["u0 a1"] * 3),
    ("suaua", [], ["s0 u1 a2 u3 a4"] * 3),
    ("Sua", ["empty_system"], ["u1 a2"] * 3),
    ("usSa", ["empty_system", "system_inside"], ["turn_order"] * 3),
    ("aua", ["begins_with_assistant"], ["turn_order", "u1 a2", "u1 a2"]),
    ("saaua", ["begins_with_assistant"], ["turn_order", "s0 u3 a4", "s0 u3 a4"]),
    ("uau", ["ends_with_user"], ["turn_order", "u0 a1", "u0 a1"]),
    ("uauu", ["ends_with_user"], ["turn_order", "u0 a1", "u0 a1"]),
    ("auau", ["begins_with_assistant", "ends_with_user"], ["turn_order", "u1 a2", "u1 a2"]),
    ("uua", ["repeated_role"], ["turn_order", "turn_order", "u0\n\nu1 a2"]),
    ("uaaua", ["repeated_role"], ["turn_order", "turn_order", "u0 a1\n\na2 u3 a4"]),
    ("ssua", ["repeated_role"], ["turn_order", "turn_order", "s0\n\ns1 u2 a3"]),
    ("uasua", ["system_inside"], ["turn_order"] * 3),
    ("asua", ["begins_with_assistant", "system_inside"], ["turn_order"] * 3),
    ("uas", ["system_inside"], ["turn_order"] * 3),
    ("", ["no_answer"], ["no_answer"] * 3),
    ("s", ["no_answer"], ["no_answer"] * 3),
    ("u", ["ends_with_user", "no_answer"], ["no_answer"] * 3),
    ("sa", ["begins_with_assistant", "no_answer"], ["no_answer"] * 3),
    ("au", ["begins_with_assistant", "ends_with_user", "no_answer"], ["no_answer"] * 3),
]


@pytest.mark.parametrize(("letters", "flaws", "expected"), CASES)
def test_turns_are_repaired_as_the_key_says(letters, flaws, expected):
    messages = conversation(letters)
    for how, outcome in zip(("drop", "trim", "merge"), expected, strict=True):
        ordered = order_turns(messages, how)
        assert (how, ordered.flaws) == (how, flaws)
        if outcome in ("turn_order", "no_answer"):
            assert (how, ordered.reason, ordered.messages) == (how, outcome, messages), "a rejected row is shown whole"
        else:
            texts = " ".join(said["content"] for said in ordered.messages)
            assert (how, ordered.reason, texts) == (how, None, outcome)


def test_neighbours_that_differ_in_more_than_their_text_are_not_joined():
    first, second = ({"role": "user", "content": "x", "weight": weight} for weight in (0, 1))
    answer = {"role": "assistant", "content": "y", "weight": 1}
    assert order_turns([first, second, answer], "merge").reason == "turn_order"
    assert order_turns([first, first, answer], "merge").messages == [first | {"content": "x\n\nx"}, answer]


def test_every_flaw_has_words_and_every_value_mends_known_ones():
    assert {flaw for _, flaws, _ in CASES for flaw in flaws} == set(FLAWS)
    assert set.union(*MENDED.values()) < set(FLAWS)
