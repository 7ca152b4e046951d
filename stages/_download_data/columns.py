"""The names that data sets give to the columns of a conversation. Names are compared without regard to case.

The names are those that axolotl, LLaMA-Factory and TRL document, and those of large data sets on the hub. A name is
listed only where data sets agree on what it means.
"""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

ANSWERS = ("answer", "completion", "output", "response")
# {format: {part of the conversation: the columns that may hold it}}. stages/_clean/formats.py reads each part.
FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"conversation": ("messages",)},
    "sharegpt": {"conversation": ("conversations", "conversation", "dialog", "dialogue")},
    "prompt-completion": {"user": ("prompt",), "assistant": (*ANSWERS, "generation")},
    "alpaca": {"user": ("instruction",), "assistant": ANSWERS},
    "question-answer": {"user": ("question", "query"), "assistant": ANSWERS},
    "input-output": {"user": ("input",), "assistant": (*ANSWERS, "target")},
    "inst": {"inst": ("text",)},
    "text": {"text": ("text",)},
}
# What a row of any format may also have. The text of `context` follows the user's last one.
SYSTEM = ("system", "system_prompt", "system_message")
CONTEXT = ("input", "context")
HISTORY = ("history",)
# {column: those that are the user's text where a row has both}. An alpaca row may have a ready-made prompt.
YIELDS = {"prompt": ("instruction",), "input": ("instruction", "prompt", "question", "query")}

PREFERENCES = (
    "Preference training (DPO, ORPO, KTO) is not done here. To learn from the chosen answers only, bring them as "
    "completion next to prompt, or as messages"
)
MEDIA = "Only text is read. Take out the rows that need it"
TOOLS = "Bring the definitions of tools as `tools`, a list of {type: function, function: {…}}"
# {column: why a row that has it cannot be read without it, and what to do}.
MEANINGFUL = {
    **dict.fromkeys(("chosen", "rejected"), PREFERENCES),
    **dict.fromkeys(
        ("label", "kto_tag"), "It says whether an answer is good (KTO). Take out the rows with the bad answers"
    ),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), MEDIA),
    "functions": TOOLS,
}
VERDICTS = {"true", "false", "0", "1"}  # the values of `label` in a KTO data set; other labels are names of classes
EMPTY = (None, "", "[]", "{}", "null", [], {})


class Reading(NamedTuple):
    """A format, and the columns that a row of it needs: {part: column}, as pairs."""

    format: str
    needed: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.format} with {' and '.join(column for _, column in self.needed)}"


def has_meaning(column: str, value: object) -> bool:
    """Whether the column is in MEANINGFUL and the row's value says something."""
    name = column.casefold()
    if name not in MEANINGFUL or value in EMPTY:
        return False
    return name not in {"label", "kto_tag"} or str(value).strip().casefold() in VERDICTS


def named(columns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns the columns that have one of the names, in the order of the names."""
    columns = sorted(columns)
    return [column for name in names for column in columns if column.casefold() == name]


def readings(columns: frozenset[str], formats: Iterable[str] = FORMATS) -> list[Reading]:
    """Returns every way to read a row with a value in these columns."""
    found = [
        Reading(name, tuple(zip(FORMATS[name], chosen, strict=True)))
        for name in formats
        for chosen in product(*(named(columns, names) for names in FORMATS[name].values()))
    ]
    # Many data sets have a ready-made prompt in a column `text`, so it is read only where there is nothing else.
    found = [reading for reading in found if reading.format not in ("inst", "text")] or found
    asked = {(dict(reading.needed).get("user", "").casefold(), reading.needed[-1]) for reading in found}
    return [
        reading
        for reading in found
        if not any((other, reading.needed[-1]) in asked for other in YIELDS.get(reading.needed[0][1].casefold(), ()))
    ]


def optional_columns(reading: Reading, columns: Iterable[str]) -> dict[str, list[str]]:
    """Returns {part: columns} of the whole conversation: those that a row needs, and those that it may have."""
    parts = {part: [column] for part, column in reading.needed}
    free = [column for column in columns if [column] not in parts.values()]
    if "user" in parts:
        parts["user"] += named(free, CONTEXT)
        parts["history"] = named(free, HISTORY)
    if "text" not in parts:
        parts["system"] = named(free, SYSTEM)
        parts["tools"] = named(free, ("tools",))
    return {part: names for part, names in parts.items() if names}
