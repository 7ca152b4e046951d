"""Decides whether two rows are near-duplicates, from their texts only.

The Jaccard similarity of their shingles decides. Rows with different prompts must also answer the same. The same short
answer proves little, so then the prompts may differ only by a small edit, and no such edit may change the answer.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from enum import IntEnum
from functools import cached_property
from os.path import commonprefix

import numpy as np

from stages._clean.common_text import distinct_shingles
from stages._clean.signatures import ANSWER, PROMPT, shingles, similarities, without_repetitions

NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
WORD = re.compile(r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff]+|.", re.DOTALL)
TELLING_ANSWER = 100  # characters: rows often have the same shorter answer, such as yes, by chance
SMALL_EDIT = 12  # characters in which two prompts may differ: a word or two, no other question
ANCHOR = 20  # characters: two texts that differ have shorter parts in common by chance
EDITED = 0.5  # the similarity of longer parts that differ, from which one is an edited form of the other


class ComparedRow:
    """A row, and the parts by which it is compared. Most comparisons need only its shingles."""

    def __init__(self, text: str, common: np.ndarray):
        self.text = text
        self.shingles = without_repetitions(distinct_shingles([text], common)[0])

    def turns(self, mark: str) -> str:
        """Joins the turns that begin with the mark."""
        parts = re.findall(f"([{PROMPT}{ANSWER}])([^{PROMPT}{ANSWER}]*)", self.text)
        return " ".join(text for found, text in parts if found == mark)

    @cached_property
    def prompt(self) -> str:
        return self.turns(PROMPT)

    @cached_property
    def answer(self) -> str:
        return self.turns(ANSWER)

    @cached_property
    def answer_shingles(self) -> frozenset[int]:
        return frozenset(shingles(self.answer).tolist())

    @cached_property
    def numbers(self) -> set[str]:
        return set(NUMBER.findall(self.answer))


def differing_parts(one: str, other: str) -> tuple[str, str]:
    """Returns what is left of two texts without the beginning and the end that they share."""
    begin = len(commonprefix([one, other]))
    one, other = one[begin:], other[begin:]
    end = len(commonprefix([one[::-1], other[::-1]]))
    return one[: len(one) - end], other[: len(other) - end]


def is_small_edit(one: str, other: str) -> bool:
    """Whether one text is the other after a small edit, or after one has gone on."""
    if min(len(one), len(other)) <= SMALL_EDIT:
        return True
    left, right = (without_repetitions(shingles(text)) for text in (one, other))
    return bool(similarities(left, [right])[0] >= EDITED)


def replaced_parts(one: str, other: str) -> Iterator[tuple[str, str]]:
    """Aligns the words of two texts and yields the parts that differ. A few equal words end no such part."""
    words, others = WORD.findall(one), WORD.findall(other)
    left = right = ""
    for kind, a, b, c, d in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        part, counterpart = "".join(words[a:b]), "".join(others[c:d])
        if kind == "equal" and len(part) > ANCHOR:
            yield left, right
            left = right = ""
        else:
            left, right = left + part, right + counterpart
    yield left, right


def edit_size(one: str, other: str) -> int | None:
    """Returns in how many characters two prompts differ, or None if one asks for something else."""
    left, right = differing_parts(one, other)
    # Parts that are similar as a whole may still have another question at their end.
    if min(len(left), len(right)) > SMALL_EDIT and not (
        is_small_edit(left, right) and all(is_small_edit(*parts) for parts in replaced_parts(left, right))
    ):
        return None
    return max(len(left), len(right))


def answers_agree(one: ComparedRow, other: ComparedRow, threshold: float) -> bool:
    """Whether one answer has the other's runs, and the numbers of one do not contradict the other's.

    An answer may go on after the other ends, as in a conversation with one more turn.
    """
    both = len(one.answer_shingles & other.answer_shingles)
    if both < threshold * min(len(one.answer_shingles), len(other.answer_shingles)):
        return False
    return not (one.numbers - other.numbers and other.numbers - one.numbers)


class Relation(IntEnum):
    """What two rows with similar shingles are to each other."""

    DIFFERENT = 0
    NEAR = 1
    EDITED = 2  # near-duplicates, unless such an edit changes the answer in other rows
    OTHER_ANSWER = 3  # a small edit of the prompt changes the answer


def surely_near(one: ComparedRow, other: ComparedRow, threshold: float) -> bool:
    """Whether rows with similar shingles are near-duplicates whatever other rows say."""
    if one.prompt == other.prompt:
        return True
    return min(len(one.answer), len(other.answer)) >= TELLING_ANSWER and answers_agree(one, other, threshold)


def relation(one: ComparedRow, other: ComparedRow, threshold: float) -> tuple[Relation, int]:
    """Returns what the rows are to each other, and for EDITED and OTHER_ANSWER the characters of the edit."""
    if surely_near(one, other, threshold):
        return Relation.NEAR, 0
    if min(len(one.answer), len(other.answer)) >= TELLING_ANSWER:
        return Relation.DIFFERENT, 0
    size = edit_size(one.prompt, other.prompt)
    if size is None:
        return Relation.DIFFERENT, 0
    return (Relation.EDITED if answers_agree(one, other, threshold) else Relation.OTHER_ANSWER), size
