"""Refusals: answers that refuse and offer nothing are found, in six languages, and ordinary answers stay."""

import re

import pytest

from stages._clean import refusals
from stages._clean.refusals import MOST_CHARACTERS, is_refusal
from tests.support.labelled_refusals import SETS

# What docs/own-data.md states.
LEAST = {"tuned on": {"recall": 0.97, "precision": 0.99}, "held out": {"recall": 0.85, "precision": 0.99}}


def test_the_labelled_sets_are_large_enough():
    refused, ordinary = (sum((list(texts) for texts in sets), []) for sets in zip(*SETS.values(), strict=True))
    assert len(set(refused)) >= 200
    assert len(set(ordinary)) >= 400
    assert not set(refused) & set(ordinary)


@pytest.mark.parametrize("name", SETS)
def test_refusals_are_found_and_ordinary_answers_are_not(name):
    refused, ordinary = SETS[name]
    missed = [text for text in refused if not is_refusal(text)]
    alarms = [text for text in ordinary if is_refusal(text)]
    found = len(refused) - len(missed)
    assert found / len(refused) >= LEAST[name]["recall"], missed
    assert found / (found + len(alarms)) >= LEAST[name]["precision"], alarms


def test_curly_and_straight_apostrophes_are_the_same():
    for refused, ordinary in SETS.values():
        for text in refused + ordinary:
            assert is_refusal(text.replace("'", "\u2019")) == is_refusal(text.replace("\u2019", "'"))


def test_the_shortcut_misses_no_refusal(monkeypatch):
    texts = [text for pair in SETS.values() for texts in pair for text in texts]
    found = [is_refusal(text) for text in texts]
    monkeypatch.setattr(refusals, "CLUE", re.compile(""))
    assert [is_refusal(text) for text in texts] == found


def test_an_answer_that_says_more_is_kept():
    no = "I'm sorry, but I can't help with that."
    assert is_refusal(no)
    assert not is_refusal(f"{no} However, you can ask the library for the book.")
    assert not is_refusal(f"{no} " + "The history of the town is long. " * (MOST_CHARACTERS // 30))
    assert not is_refusal(f"She read the mail aloud: {no}")
