"""Compares the calls of tools that a model wrote with those in the data."""

import json

CALL_MARK = "[TOOL_CALLS]"


def calls_in(text: str) -> list[dict] | None:
    """The calls in a text, each {name, arguments}, without their ids, which mean nothing. None if there are none."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(listed, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        for call in listed
    )
    return [{name: call[name] for name in ("name", "arguments")} for call in listed] if whole and listed else None


def shown_calls(text: str) -> str:
    """The calls as JSON without ids, or the text where it has none."""
    calls = calls_in(text)
    return text if calls is None else json.dumps(calls, ensure_ascii=False)


def call_outcome(output: str, reference: str, marked: bool) -> str:
    """What is right of calls: `text`, `not_json`, `wrong_name`, `wrong_arguments` or `right`.

    The order of the calls does not count.

    Args:
        marked: Whether the output began with the token [TOOL_CALLS]. Without it, it is a text.
    """
    if not marked:
        return "text"
    made, wanted = calls_in(output), calls_in(reference)
    if made is None:
        return "not_json"
    if sorted(call["name"] for call in made) != sorted(call["name"] for call in wanted):
        return "wrong_name"
    made, wanted = (sorted(json.dumps(call, sort_keys=True) for call in calls) for calls in (made, wanted))
    return "right" if made == wanted else "wrong_arguments"
