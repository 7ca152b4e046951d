"""Brings the turns of a conversation into order: at most one system turn, then user, assistant, user, assistant…"""

from itertools import groupby, pairwise
from typing import NamedTuple

from stages._clean.formats import Messages

# {flaw: it in words}. How clean.repair_turns treats them is in docs/own-data.md.
FLAWS = {
    "empty_system": "an empty system turn",
    "begins_with_assistant": "begins with the assistant",
    "ends_with_user": "ends with the user",
    "repeated_role": "two turns of one role follow each other",
    "system_inside": "a system turn that is not the first turn",
    "no_answer": "no answer of the assistant",
}

# {a value of clean.repair_turns: the flaws that are mended; a conversation with another one is rejected}
MENDED = {"drop": {"empty_system"}, "trim": {"empty_system", "begins_with_assistant", "ends_with_user"}}
MENDED["merge"] = MENDED["trim"] | {"repeated_role"}


class Ordered(NamedTuple):
    """The turns in order, what was wrong with them, and the reason to reject them or None."""

    messages: Messages
    flaws: list[str]
    reason: str | None


def first_place(messages: Messages, role: str) -> int:
    """Returns how many turns at the beginning are of the role."""
    return next((place for place, said in enumerate(messages) if said["role"] != role), len(messages))


def merge_neighbours(messages: Messages) -> Messages:
    """Joins neighbours that differ in nothing but their text with a blank line."""

    def but_text(said: dict) -> dict:
        return {key: value for key, value in said.items() if key != "content"}

    return [
        other | {"content": "\n\n".join(said["content"] for said in neighbours)}
        for other, neighbours in groupby(messages, but_text)
    ]


def order_turns(messages: Messages, how: str) -> Ordered:
    """Orders the turns as clean.repair_turns says. An empty system turn is left out in any case.

    Args:
        how: drop: reject a conversation that is not in order. trim: cut the assistant's turns at the beginning and
            the user's at the end. merge: trim, and join neighbours of one role.
    """
    if [said["role"] for said in messages] == ["text"]:
        return Ordered(messages, [], None)
    if any(said["role"] == "tool_calls" for said in messages):
        return Ordered(messages, [], None)  # check_calls() has seen them
    if messages and messages[0]["role"] == "tools":
        ordered = order_turns(messages[1:], how)
        return ordered._replace(messages=[messages[0], *ordered.messages])
    turns = [said for said in messages if said["role"] != "system" or said["content"].strip()]
    start = first_place(turns, "system")
    system, spoken = turns[:start], turns[start:]
    begin, end = first_place(spoken, "assistant"), first_place(spoken[::-1], "user")
    trimmed = spoken[begin : max(begin, len(spoken) - end)]
    found = {
        "empty_system": len(turns) < len(messages),
        "begins_with_assistant": begin > 0,
        "ends_with_user": end > 0,
        "repeated_role": len(system) > 1 or any(a["role"] == b["role"] for a, b in pairwise(trimmed)),
        "system_inside": any(said["role"] == "system" for said in spoken),
        "no_answer": not trimmed,
    }
    flaws = [flaw for flaw, present in found.items() if present]
    result = [*merge_neighbours(system), *merge_neighbours(trimmed)]  # joins nothing where no role is repeated
    roles = [said["role"] for said in result]
    in_order = all(a != b for a, b in pairwise(roles))  # turns with different flags are not joined
    if found["no_answer"]:
        return Ordered(messages, flaws, "no_answer")
    if not in_order or not MENDED[how] >= set(flaws):
        return Ordered(messages, flaws, "turn_order")
    return Ordered(result, flaws, None)
