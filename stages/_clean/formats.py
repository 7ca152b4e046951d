"""Reads the conversation in a row, from the columns that download_data recognised: one function for each part of it."""

import ast
import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from stages._clean.tools import CallIds, ToolCallError, calls_turn, parsed, result_turn, tools_turn
from stages.core.records import ANSWER_ROLES, Message

Messages = list[Message]
# {a role as data sets name it, in any case: our name for it}.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"),
}
CALL_ROLES = {"tool_call", "function_call"}  # a turn whose text is the call
RESULT_ROLES = {"tool", "function", "tool_response", "function_response", "observation"}
CALL_KEYS = ("tool_calls", "function_call")
# Each letter is a turn: system, user, assistant, call, tool's result. A user gets calls with results, then an answer.
# Only the last answer of a conversation may be calls.
ORDER = re.compile(r"s?(?:u(?:ct+)*a)*u(?:ct+)*[ac]")
LETTERS = {"system": "s", "user": "u", "assistant": "a", "tool_calls": "c", "tool": "t"}
# The keys of a turn. The first one with a value is read.
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value", "text")
# The keys of an exchange, which is a user's text with the answer to it.
ASKED_KEYS = ("user", "human", "instruction", "prompt", "question")
ANSWER_KEYS = ("assistant", "gpt", "bot", "output", "response", "answer", "completion")
MEDIA_KEYS = {"image", "images", "image_url", "audio", "audios", "video", "videos"}
TRAIN_KEYS = ("weight", "train", "train_detail")
EMPTY = (None, "", [], {})
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_ADVICE = "Only text can be read. Take such rows out"
INST = re.compile(
    r"\s*(?:<s>)?\s*\[INST\]((?:(?!\[/?INST\]).)*)\[/INST\]((?:(?!\[/?INST\]|</?s>).)*)(?:</s>\s*|(?=(?:<s>)?\s*\[INST\])|\Z)",
    re.DOTALL,
)
LIST_OF_TURNS = re.compile(r"\s*\[\s*\{\s*['\"]")
INST_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*(.*)", re.DOTALL)

# How texts begin that a chat template made, and marks that end texts.
RENDERED_TEXT = re.compile(
    r"\A\s*(?:<s>|<\|begin_of_text\|>)?\s*(?:\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)"
)
END_MARK = re.compile(r"(?:</s>|<\|endoftext\|>|<\|end_of_text\|>|<\|im_end\|>|<\|eot_id\|>)\s*\Z")


def printable(text: str) -> str:
    """Returns the text as UTF-8 can write it: JSON's \\ud800 escapes can bring in half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def text_of(name: str, value: object) -> str:
    """Returns a text, the JSON text of a number or boolean, or the joined texts of a list of parts.

    Raises:
        TypeError, ValueError: the value is something else; the message begins with `name`.
    """
    if isinstance(value, list) and value:
        return join_parts(name, value)
    if isinstance(value, bool | int | float):
        value = json.dumps(value, allow_nan=False)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, not a text or a number")
    return printable(value)


def join_parts(name: str, parts: list) -> str:
    """Joins the texts of a list of parts with a blank line, as mistral-common does."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or any(part.get(key) for key in MEDIA_KEYS):
            raise TypeError(f"{name} has a part that is {kind or type(part).__name__}. {MEDIA_ADVICE}")
        texts.append(text_of(name, part.get("text")))
    return "\n\n".join(text for text in texts if text)


def turn(role: str, content: object) -> Message:
    return {"role": role, "content": text_of(f"the {role} text", content)}


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
    return [said | {"train": False} if said["role"] in ANSWER_ROLES else said for said in messages]


def is_role_and_text(said: object) -> bool:
    """Whether an element that looks like an exchange of two texts is a turn, such as [user, the text]."""
    if not isinstance(said, list | tuple) or len(said) != 2 or not isinstance(said[0], str):
        return False
    return said[0].strip().casefold() in {*ROLES, *CALL_ROLES, *RESULT_ROLES}


def first_of(said: dict, keys: tuple[str, ...]) -> str | None:
    """Returns the first of the keys that has a value."""
    return next((key for key in keys if said.get(key) is not None), None)


class Reader:
    """Reads one row and notes the keys of turns that it does not read."""

    def __init__(self):
        self.unread: Counter[str] = Counter()
        self.ids = CallIds()

    def leave_columns(self, row: dict, read: set[str]) -> None:
        """Notes the columns that hold a value and are not read."""
        self.unread.update(printable(name) for name, value in row.items() if name not in read and value not in EMPTY)

    def leave(self, name: str, said: dict, *read: str | None) -> None:
        """Notes the keys of a turn that hold a value and are not read."""
        left = [key for key, value in said.items() if key not in read and value not in EMPTY]
        if media := MEDIA_KEYS.intersection(left):
            raise TypeError(f"a turn has {', '.join(sorted(media))}. {MEDIA_ADVICE}")
        self.unread.update(printable(f"{name}[].{key}") for key in left)

    def turns_of_list(self, name: str, value: object) -> Messages:
        """Reads a list of turns or of exchanges, or its JSON or Python text, as CSV files have it."""
        if isinstance(value, str):
            value = parse_list(name, value)
        if not isinstance(value, list):
            raise TypeError(f"{name} is {type(value).__name__}, not a list of turns")
        if value and all(map(is_role_and_text, value)):
            raise ValueError(
                f"{name} has pairs of a role and a text, which would be read as exchanges. A turn is {TURN}"
            )
        return [said for element in value for said in self.turns_of_element(name, element)]

    def turns_of_element(self, name: str, said: object) -> Messages:
        """Reads a turn, or an exchange: a list of two texts, or an object with a key for each."""
        if isinstance(said, list | tuple) and len(said) == 2:
            return [turn("user", said[0]), turn("assistant", said[1])]
        if not isinstance(said, dict):
            raise ValueError(f"{name} has {type(said).__name__} where a turn is expected: {TURN}")
        role_key = first_of(said, ROLE_KEYS)
        asked, answered = first_of(said, ASKED_KEYS), first_of(said, ANSWER_KEYS)
        if role_key is None and asked and answered:
            self.leave(name, said, asked, answered, *TRAIN_KEYS)
            made = [turn("user", said[asked]), turn("assistant", said[answered])]
            return untrained(made) if is_left_untrained(said) else made
        role = role_of(said)
        if role not in {*ROLES, *CALL_ROLES, *RESULT_ROLES}:
            raise ValueError(f"a turn of {name} needs {TURN}")
        text_key = first_of(said, TEXT_KEYS)
        text = said[text_key] if text_key else None
        if role in RESULT_ROLES:
            self.leave(name, said, role_key, text_key, "tool_call_id", "name", *TRAIN_KEYS)
            if isinstance(text, list) and text and all(isinstance(part, dict) and "type" in part for part in text):
                text = join_parts(f"the {role} text", text)
            made = [result_turn(text, said.get("tool_call_id"), self.ids)]
        elif calls := calls_of(said, role, text):
            self.leave(name, said, role_key, text_key, *CALL_KEYS, *TRAIN_KEYS)
            made = [calls_turn(calls, self.ids)]
        else:
            self.leave(name, said, role_key, text_key, *TRAIN_KEYS)
            made = [turn(ROLES[role], text)]
        if self.ids.open and made[0]["role"] not in ("tool", "tool_calls"):
            raise ToolCallError("a call has no result, and the conversation continues")
        return untrained(made) if is_left_untrained(said) else made

    def tools(self, row: dict, columns: list[str]) -> Messages:
        return tools_turn(row.get(columns[0]))

    def conversation(self, row: dict, columns: list[str]) -> Messages:
        return self.turns_of_list(columns[0], row.get(columns[0]))

    def history(self, row: dict, columns: list[str]) -> Messages:
        """Reads the exchanges before the row's own."""
        return self.turns_of_list(columns[0], row.get(columns[0]) or [])

    def system(self, row: dict, columns: list[str]) -> Messages:
        """Reads the system prompt from the first column that has one."""
        column = first_of({name: row.get(name) or None for name in columns}, tuple(columns))
        return [turn("system", row[column])] if column else []

    def asked(self, row: dict, columns: list[str]) -> Messages:
        """Reads the user's text, and after it that of further columns, such as `input`. Or reads a list of turns.

        As in TRL, answers in such a list are not trained.
        """
        turns = untrained(self.said(row, columns[0], "user"))
        if not turns:
            raise ValueError(f"{columns[0]} is an empty list of turns")
        more = [text_of(name, row[name]) for name in columns[1:] if row.get(name) is not None]
        if any(more):
            texts = [turns[-1]["content"], *more]
            turns[-1] = turn(turns[-1]["role"], "\n\n".join(text for text in texts if text))
        return turns

    def answer(self, row: dict, columns: list[str]) -> Messages:
        return self.said(row, columns[0], "assistant")

    def said(self, row: dict, column: str, role: str) -> Messages:
        """Reads a column that every row of the format needs: a text, a number or a list of turns."""
        if column not in row:
            raise ValueError(f"the columns are {', '.join(sorted(map(str, row))) or 'none'}; {column} is missing")
        value = row[column]
        turns = isinstance(value, list) and not any(isinstance(part, dict) and "type" in part for part in value)
        return self.turns_of_list(column, value) if turns else [turn(role, value)]

    def inst(self, row: dict, columns: list[str]) -> Messages:
        """Reads a text in Mistral's or Llama 2's format: [INST] the user's text [/INST] the answer</s>…"""
        text, at, turns = text_of(columns[0], row.get(columns[0])), 0, []
        while match := INST.match(text, at):
            asked = INST_SYSTEM.fullmatch(match[1]) if not turns else None
            if asked:
                turns.append(turn("system", asked[1].strip("\n")))
            for role, said in (("user", asked[2] if asked else match[1]), ("assistant", match[2])):
                # The format puts one blank around a text; more belong to it, such as the indentation of code.
                turns.append(turn(role, said.removeprefix(" ").removesuffix(" ")))
            at = match.end()
        if not turns or text[at:].strip():
            raise ValueError(f"{columns[0]} does not read [INST] … [/INST] … </s> from its beginning to its end")
        return turns

    def text(self, row: dict, columns: list[str]) -> Messages:
        """Reads a text for continued pre-training.

        Raises:
            ValueError: it is a rendered conversation, or brings the end mark of its texts along.
        """
        made = turn("text", row.get(columns[0]))
        if mark := RENDERED_TEXT.search(made["content"]):
            raise ValueError(
                f"the text has the mark {mark[0].strip()} of a rendered conversation. In a text it would be trained as "
                "letters. Bring the conversation as messages with the roles user and assistant"
            )
        if mark := END_MARK.search(made["content"]):
            raise ValueError(
                f"the text ends with the mark {mark[0].strip()}, which would be trained as letters. Remove it: every "
                "text gets its </s>"
            )
        return [made]


TURN = "role (system, user or assistant) and content, or from and value"
# {part of the conversation, in the order in which the parts follow each other: how it is read}
PARTS: dict[str, Callable[[Reader, dict, list[str]], Messages]] = {
    "tools": Reader.tools,
    "system": Reader.system,
    "history": Reader.history,
    "conversation": Reader.conversation,
    "inst": Reader.inst,
    "text": Reader.text,
    "user": Reader.asked,
    "assistant": Reader.answer,
}


def calls_of(said: dict, role: str, text: object) -> list:
    """Returns the calls of a turn, in OpenAI's shape or as the text of a turn with a role of its own.

    Raises:
        ToolCallError: the turn has a text too, or calls under both keys.
    """
    if role in CALL_ROLES:
        calls = parsed(text, f"the text of a turn with the role {role}")
        return calls if isinstance(calls, list) else [calls]
    if said.get("tool_calls") and said.get("function_call"):
        raise ToolCallError("a turn has tool_calls and function_call. Leave one out")
    # In Parquet every turn has the columns of all turns, so an empty tool_calls calls nothing.
    calls = said.get("tool_calls") or ([said["function_call"]] if said.get("function_call") else [])
    if calls and text:
        raise ToolCallError("a turn has a text and calls; template v3 has no form for both. Leave one out")
    calls = parsed(calls, "tool_calls")
    if not isinstance(calls, list):
        raise ToolCallError("tool_calls is not a list")
    return calls


def check_calls(messages: Messages) -> None:
    """Checks the order of the turns if some call tools. clean.repair_turns is for conversations without calls.

    Raises:
        ToolCallError: template v3 has no form for the order.
    """
    letters = "".join(LETTERS.get(said["role"], "") for said in messages)
    if ("c" in letters or "t" in letters) and not ORDER.fullmatch(letters):
        raise ToolCallError("turns with tools must go user, calls, their results, answer…, and end with an answer")


def with_turns_in_texts(row: dict, columns: list[str]) -> dict:
    """Returns the row with lists where the prompt and the answer both are JSON texts of turns, as CSV files have them.

    If only one of them is, it may be meant as a text.

    Args:
        columns: of the prompt and of the answer.
    """
    found = {}
    for column in columns:
        text = row.get(column)
        with contextlib.suppress(ValueError):
            if isinstance(text, str) and LIST_OF_TURNS.match(text):
                found[column] = parse_list(column, text)
    roles = [{ROLES.get(role_of(said)) for said in turns} for turns in found.values() if isinstance(turns, list)]
    both = len(roles) == 2 and None not in roles[0] and roles[1] == {"assistant"}
    return row | found if both else row


def role_of(said: object) -> str | None:
    """Returns the role that a turn names, in lower case, or None."""
    role = said.get(first_of(said, ROLE_KEYS)) if isinstance(said, dict) else None
    return role.strip().casefold() if isinstance(role, str) else None


def parse_list(name: str, text: str) -> object:
    """Returns what a text of JSON holds, or of Python: pandas writes lists to CSV files as Python does."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise ValueError(f"{name} is a text that holds no list of turns in JSON")


class Conversation(NamedTuple):
    messages: Messages
    unread: Counter[str]  # {column, or column[].key of a turn: 1 or the number of turns}


def to_messages(row: object, layout: dict) -> Conversation:
    """Reads the conversation in a row. Its turns may still be in any order.

    Args:
        layout: the content of data/raw/format.json.

    Raises:
        ToolCallError: template v3 has no form for its tools.
        TypeError, ValueError: the row does not fit the format; the message says why.
    """
    columns = layout["columns"]
    if isinstance(row, list) and "conversation" in columns:  # a row that is a list of turns
        row = {columns["conversation"][0]: row}
    if not isinstance(row, dict):
        raise TypeError(f"the row is {type(row).__name__}, not an object with columns")
    if "assistant" in columns:
        row = with_turns_in_texts(row, [columns["user"][0], columns["assistant"][0]])
    reader = Reader()
    messages = [said for part, read in PARTS.items() if part in columns for said in read(reader, row, columns[part])]
    read = {name for names in columns.values() for name in names} | ({"tests"} if layout["tests"] else set())
    check_calls(messages)
    reader.leave_columns(row, read.union(layout["ignored"]))
    return Conversation(messages, reader.unread)


def tests_of(row: dict, layout: dict) -> str | None:
    """Returns the code in the column `tests`, which holds one text or a list of lines. None means no tests.

    Raises:
        TypeError: the column holds something else.
    """
    given = (row.get("tests") if layout["tests"] else None) or None
    lines = given if isinstance(given, list) else [given]
    if given is not None and not all(isinstance(line, str) for line in lines):
        raise TypeError("tests is neither a text nor a list of texts")
    code = None if given is None else printable("\n".join(lines))
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
        fields[name] = None if value is None else text_of(name, value)
    return fields
