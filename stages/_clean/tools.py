"""Reads tools and their calls in OpenAI's shape, and writes them as the texts that mistral-common encodes for v3.

A conversation with tools has turns of three more roles. `tools` comes first and lists the tools. `tool_calls` is an
answer that calls some, and `tool` is a result. The text of each is JSON as mistral-common writes it.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable

from stages.core.records import Message

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


class ToolCallError(ValueError):
    """The conversation uses tools in a way that template v3 has no form for."""


def as_json(value: object) -> str:
    # JSON's \ud800 escapes can bring in a lone surrogate, which cannot be written as UTF-8.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def parsed(value: object, name: str) -> object:
    """Returns the value, or what it holds if it is JSON text.

    Raises:
        ToolCallError: it is a text, and no JSON.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ToolCallError(f"{name} is not JSON") from None


def function_name(function: object) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ToolCallError(f"a tool has the name {name!r}; it needs 1 to 64 letters, digits, _ or -")
    return name


def check_key(function: dict, wanted: str, others: tuple[str, ...]) -> None:
    """Raises ToolCallError if the function has what it needs under another program's key, which would be lost."""
    if function.get(wanted) is None and (given := next((key for key in others if function.get(key)), None)):
        raise ToolCallError(f"{function['name']} has {given} where {wanted} is expected. Rename the key")


def tools_turn(value: object) -> list[Message]:
    """Returns the turn of the row's tools. Returns none if there are none, or the column has another meaning.

    Args:
        value: the column `tools`: a list of tools, each {type: function, function: {…}} or only the function. It may be
            JSON text.
    """
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return []
    listed = parsed(value, "tools") if value else []
    if not isinstance(listed, list):
        raise ToolCallError("tools is not a list")
    if not any(isinstance(tool, dict) for tool in listed):
        return []
    tools = []
    for tool in listed:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function_name(function)
        check_key(function, "parameters", ("input_schema", "arguments", "args", "inputSchema"))
        parameters = parsed(function.get("parameters") or {}, f"parameters of {name}")
        if not isinstance(parameters, dict):
            raise ToolCallError(f"the parameters of {name} are no JSON object")
        described = {"name": name, "description": function.get("description") or "", "parameters": parameters}
        tools.append({"type": "function", "function": described})
    return [{"role": "tools", "content": as_json(tools)}]


class CallIds:
    """The ids of a conversation's calls, in the form that v3 needs: 9 letters and digits.

    An id of another form becomes its hash. A call without one gets the hash of its number.
    """

    def __init__(self) -> None:
        self.made = 0
        self.open: list[str] = []  # the calls that still need a result

    def of_call(self, given: object) -> str:
        self.made += 1
        call_id = self.formed(given or f"call {self.made}")
        self.open.append(call_id)
        return call_id

    def of_result(self, given: object) -> str:
        """Raises ToolCallError if there is no such call, or its result is there already."""
        call_id = self.formed(given) if given else next(iter(self.open), None)
        if call_id not in self.open:
            raise ToolCallError("a tool's result belongs to no call before it")
        self.open.remove(call_id)
        return call_id

    @staticmethod
    def formed(given: object) -> str:
        text = str(given)
        return text if CALL_ID.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def calls_turn(calls: Iterable[object], ids: CallIds) -> Message:
    """Returns the turn of an answer's calls, each {id, function: {name, arguments}} or only the function."""
    listed = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function_name(function)
        check_key(function, "arguments", ("parameters", "args", "input"))
        arguments = function.get("arguments")
        arguments = parsed({} if arguments in (None, "") else arguments, f"arguments of {name}")
        if not isinstance(arguments, dict):
            raise ToolCallError(f"the arguments of {name} are no JSON object")
        listed.append({"name": name, "arguments": arguments, "id": ids.of_call(call.get("id"))})
    return {"role": "tool_calls", "content": as_json(listed)}


def result_turn(content: object, given_id: object, ids: CallIds) -> Message:
    """Returns the turn of a tool's result. A result that is JSON text is written as JSON, as mistral-common does."""
    content = {} if content in (None, "", []) else content  # as mistral-common writes an empty result
    if isinstance(content, str):
        with contextlib.suppress(ValueError):
            content = json.loads(content)
    return {"role": "tool", "content": as_json({"content": content, "call_id": ids.of_result(given_id)})}
