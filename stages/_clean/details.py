"""Says why a rule rejects a row: the `detail` in rejected.parquet."""

import ast
import warnings
from collections.abc import Callable

from stages._clean.formats import Messages
from stages._clean.refusals import is_refusal
from stages._clean.rules import Repaired, answers, is_python
from stages.core.params import Clean
from stages.core.python_syntax import PYTHON, fenced_blocks, parse, python_in

SHOWN_OF_ANSWER = 150  # characters of an answer


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_OF_ANSWER else text[: SHOWN_OF_ANSWER - 1] + "…"


def empty_turn_detail(messages: Messages, clean: Clean) -> str:
    number, turn = next((n, turn) for n, turn in enumerate(messages, 1) if not turn["content"].strip())
    return f"turn {number} of {len(messages)}, of the role {turn['role']}"


def too_short_detail(messages: Messages, clean: Clean) -> str:
    lengths = [len(answer) for answer in answers(messages)]
    place = lengths.index(min(lengths)) + 1
    least = clean.min_characters
    return f"answer {place} of {len(lengths)} has {min(lengths)} characters, clean.min_characters is {least}"


def too_long_detail(messages: Messages, clean: Clean) -> str:
    characters = sum(len(turn["content"]) for turn in messages)
    return f"{characters} characters, clean.max_characters is {clean.max_characters}"


def refusal_detail(messages: Messages, clean: Clean) -> str:
    return one_line(next(filter(is_refusal, answers(messages))))


def syntax_error(code: str) -> str:
    """Returns what Python's parser has against a text that it does not accept."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or "too deep for Python's parser"
    return "accepted"


def code_does_not_parse_detail(messages: Messages, clean: Clean) -> str:
    for number, answer in enumerate(answers(messages), 1):
        blocks = fenced_blocks(answer, PYTHON) if clean.check_code == "auto" else python_in(answer)
        wrong = [code for code in blocks if parse(code) is None]
        if wrong and (clean.check_code == "auto" or not is_python(answer)):
            return f"answer {number}, {syntax_error(wrong[0])}"
    return ""


DETAILS: dict[str, Callable[[Messages, Clean], str]] = {
    "empty_turn": empty_turn_detail,
    "too_short": too_short_detail,
    "too_long": too_long_detail,
    "refusal": refusal_detail,
    "code_does_not_parse": code_does_not_parse_detail,
    "no_trained_turn": lambda messages, _: f"answers that are trained: 0 of {len(messages)} turns",
}


def rule_detail(reason: str, repaired: Repaired, clean: Clean) -> str:
    """Returns why reject_reason() gave this reason. What is secret is not one_line, because the text is redacted."""
    if reason in ("secret", "personal_data"):
        kinds = repaired.secrets if reason == "secret" else repaired.personal
        return ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
    return DETAILS[reason](repaired.messages, clean)
