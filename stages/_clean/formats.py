"""Reads the conversation in a row: one function for each format that download_data recognises."""

import re
from collections.abc import Callable
from functools import partial

from stages.core.records import Message

Messages = list[Message]
# {a role as data sets name it: our name for it}.
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TOOL_ROLES = {"tool", "function", "tool_call", "tool_response", "function_call", "function_response", "observation"}


# How texts begin that a chat template made, and marks that end texts.
RENDERED = re.compile(
    r"\A\s*(?:<s>|<\|begin_of_text\|>)?\s*(?:\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)"
)
END_MARK = re.compile(r"(?:</s>|<\|endoftext\|>|<\|end_of_text\|>|<\|im_end\|>|<\|eot_id\|>)\s*\Z")


class ToolCallError(ValueError):
    """The conversation uses a tool, which messages of a role and a text cannot express."""


def turn(role: str, content: object) -> Message:
    if not isinstance(content, str):
        raise TypeError(f"the {role} text is {type(content).__name__}, not a string")
    # JSON's \ud800 escapes can bring in a lone surrogate, which cannot be written as UTF-8.
    return {"role": role, "content": content.encode("utf-8", "replace").decode("utf-8")}


def column_turn(row: dict, column: str, role: str) -> Message:
    """Makes a turn of the text in a column that every row of the format needs."""
    if column not in row:
        raise ValueError(f"the columns are {', '.join(sorted(map(str, row))) or 'none'}; {column} is missing")
    return turn(role, row[column])


def is_left_untrained(said: dict) -> bool:
    """Whether a turn says that it is not trained: `weight: 0` as for OpenAI and Mistral, `train: false` as for axolotl.

    Raises:
        ValueError: a key has another value, or asks for a part of the turn.
    """
    weight, train = said.get("weight"), said.get("train")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ValueError(f"a turn has the weight {weight!r}. Set 1 to train it, or 0 to keep it as context only")
    if train is not None and not isinstance(train, bool):
        raise ValueError(f"a turn has train: {train!r}. Set true to train it, or false to keep it as context only")
    if said.get("train_detail"):
        raise ValueError("a turn has train_detail, but turns are trained as a whole. Remove it, and set train")
    return weight == 0 or train is False


def untrained(messages: Messages) -> Messages:
    """Returns the messages with no answer that is trained."""
    return [said | {"train": False} if said["role"] == "assistant" else said for said in messages]


def turns_of_list(name: str, value: object) -> Messages:
    """Reads a list of turns, each with the keys role and content, or from and value."""
    if not isinstance(value, list) or not value:
        raise TypeError(f"{name} is not a list of turns")
    turns = []
    for said in value:
        role = (said.get("role") or said.get("from")) if isinstance(said, dict) else None
        # In Parquet every turn has the columns of all turns, so an empty tool_calls calls nothing.
        if isinstance(said, dict) and (said.get("tool_calls") or said.get("function_call")):
            raise ToolCallError("a turn calls a tool")
        if isinstance(role, str) and role in TOOL_ROLES:
            raise ToolCallError(f"a turn has the role {role}")
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"a turn needs a role ({', '.join(ROLES)}) and content")
        made = turn(ROLES[role], said["content"] if said.get("content") is not None else said.get("value"))
        turns += untrained([made]) if is_left_untrained(said) else [made]
    return turns


def messages(row: dict) -> Messages:
    return turns_of_list("messages", row.get("messages"))


def sharegpt(row: dict) -> Messages:
    return turns_of_list("conversations", row.get("conversations"))


def prompt_completion(row: dict) -> Messages:
    """Reads prompt and completion, each a text or a list of turns. As in TRL, answers in the prompt are not trained."""
    turns: Messages = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        part = turns_of_list(name, row[name]) if isinstance(row.get(name), list) else [column_turn(row, name, role)]
        turns += untrained(part) if name == "prompt" else part
    return turns


def alpaca(row: dict) -> Messages:
    """Reads the pairs of `history`, then instruction with its input, and output. A ready-made prompt is not read."""
    turns: Messages = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise TypeError("history is not a list of pairs of an instruction and an output")
    for asked, answered in history:
        turns += [turn("user", asked), turn("assistant", answered)]
    parts = [column_turn(row, "instruction", "user")["content"], turn("user", row.get("input") or "")["content"]]
    return [*turns, turn("user", "\n\n".join(part for part in parts if part)), column_turn(row, "output", "assistant")]


def turns_of_columns(row: dict, columns: dict[str, str | None]) -> Messages:
    """Reads the texts in the columns that data.columns names for the roles."""
    turns = [column_turn(row, columns[role], role) for role in ("user", "assistant")]
    return with_system(row.get(columns["system"]) if columns["system"] else None, turns)


def with_system(text: object, turns: Messages) -> Messages:
    """Puts the text of the system column, if there is one, before the turns."""
    return turns if text is None or text == "" else [turn("system", text), *turns]


def text(row: dict) -> Messages:
    """Reads a text for continued pre-training.

    Raises:
        ValueError: it is a rendered conversation, or brings the end mark of its texts along.
    """
    made = column_turn(row, "text", "text")
    if mark := RENDERED.search(made["content"]):
        raise ValueError(
            f"the text has the mark {mark[0].strip()} of a rendered conversation. In a text it would be trained as "
            "letters. Bring the conversation as messages with the roles user and assistant"
        )
    if mark := END_MARK.search(made["content"]):
        raise ValueError(
            f"the text ends with the mark {mark[0].strip()}, which would be trained as letters. Remove it: every text "
            "gets its </s>"
        )
    return [made]


FORMATS = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt-completion": prompt_completion,
    "alpaca": alpaca,
    "text": text,
}


def to_messages(row: object, name: str, columns: dict[str, str | None] | None) -> Messages:
    """Reads the conversation in a row.

    Args:
        name: the format, as data/raw/format.json names it.
        columns: {role: column} for the format `columns`, None for the others.

    Raises:
        ToolCallError: the conversation uses tools.
        TypeError, ValueError: the row does not fit the format; the message says why.
    """
    if not isinstance(row, dict):
        raise TypeError(f"the row is {type(row).__name__}, not an object with columns")
    if name == "text":
        return text(row)
    turns = turns_of_columns(row, columns) if columns else with_system(row.get("system"), FORMATS[name](row))
    roles = [said["role"] for said in turns if said["role"] != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles or "system" in [t["role"] for t in turns[1:]]:
        raise ValueError("turns must go user, assistant, user, assistant…, with at most one system turn, at the start")
    return turns


def tests_of(row: dict) -> str | None:
    """Returns the code in the column `tests`, which holds one text or a list of lines. None means no tests.

    Raises:
        TypeError: the column holds something else.
    """
    given = row.get("tests") or None
    lines = given if isinstance(given, list) else [given]
    if given is not None and not all(isinstance(line, str) for line in lines):
        raise TypeError("tests is neither a text nor a list of texts")
    code = None if given is None else turn("tests", "\n".join(lines))["content"]
    return code if code and code.strip() else None


def fields_of(row: dict, names: tuple[str, ...]) -> dict[str, str | None]:
    """Returns, as texts, the values in the columns that clean.keep_fields names.

    Raises:
        TypeError: a value is neither a text nor a number.
    """
    fields: dict[str, str | None] = {}
    for name in names:
        value = row.get(name)
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"{name}, which clean.keep_fields names, is {type(value).__name__}, not a text or a number")
        fields[name] = None if value is None else turn(name, str(value))["content"]
    return fields


def message_reader(layout: dict) -> Callable[[object], Messages]:
    """Returns to_messages() for the format that download_data wrote to data/raw/format.json."""
    return partial(to_messages, name=layout["format"], columns=layout["columns"])
