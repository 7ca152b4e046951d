"""Repairs one conversation and applies the rules to it. A rule's name is the reason that rejected.parquet gives."""

from collections import Counter
from typing import NamedTuple

from stages._clean.formats import Messages
from stages._clean.private_data import PERSONAL_KINDS, redact, redact_json, secret_kinds
from stages._clean.refusals import is_refusal
from stages._clean.text_repair import any_about_decoding, excerpts, repaired_text
from stages.core.params import Clean
from stages.core.python_syntax import fenced_python_parses, parse, python_in
from stages.core.records import is_raw_text, is_trained

JSON_ROLES = ("tools", "tool_calls", "tool")


class Repaired(NamedTuple):
    messages: Messages
    fixed: Counter[str]  # {kind of repair: places in the text}
    change: str  # an excerpt of the first turn that a repair changed, before and after, or nothing
    secrets: Counter[str]  # {name of the kind: number of replacements}
    personal: Counter[str]


def repair(messages: Messages, clean: Clean) -> Repaired:
    """Repairs the text and redacts it as `clean` says. A row that is rejected for a secret must not show it either."""
    private: dict[str, Counter[str]] = {"secrets": Counter(), "personal": Counter()}
    kinds = {
        "secrets": () if clean.secrets == "keep" else secret_kinds(),
        "personal": () if clean.personal_data == "keep" else PERSONAL_KINDS,
    }

    def redacted(text: str) -> str:
        for searched in kinds.values():
            text, _ = redact(text, searched)
        return text

    fixed: Counter[str] = Counter()
    turns, change = [], ""
    about_decoding = clean.fix_text and any_about_decoding([message["content"] for message in messages])
    for message in messages:
        text = message["content"]
        if clean.fix_text:
            text, changed = repaired_text(text, about_decoding=about_decoding)
            fixed += changed
            if changed and not change:
                change = excerpts(redacted(message["content"]), redacted(text))
        redact_turn = redact_json if message["role"] in JSON_ROLES else redact
        for name, searched in kinds.items():
            text, counts = redact_turn(text, searched)
            private[name] += counts
        turns.append(message | {"content": text})
    return Repaired(turns, fixed, change, **private)


def answers(messages: Messages) -> list[str]:
    """Returns the texts that are trained. The others are context, so the rules on answers let them be."""
    return [message["content"] for message in messages if is_trained(message)]


def empty_turn(messages: Messages, clean: Clean) -> bool:
    return not all(message["content"].strip() for message in messages)


def no_trained_turn(messages: Messages, clean: Clean) -> bool:
    return not any(map(is_trained, messages))


def too_short(messages: Messages, clean: Clean) -> bool:
    return min(map(len, answers(messages))) < clean.min_characters


def too_long(messages: Messages, clean: Clean) -> bool:
    return sum(len(message["content"]) for message in messages) > clean.max_characters


def refusal(messages: Messages, clean: Clean) -> bool:
    return clean.reject_refusals and not is_raw_text(messages) and any(map(is_refusal, answers(messages)))


def is_python(answer: str) -> bool:
    """Whether the answer is Python as a whole (its strings may hold fences), or all code blocks in it are."""
    return parse(answer) is not None or all(parse(code) is not None for code in python_in(answer))


def code_does_not_parse(messages: Messages, clean: Clean) -> bool:
    if clean.check_code == "auto":  # the answers may be anything, such as prose
        return not all(map(fenced_python_parses, answers(messages)))
    return clean.check_code and not all(map(is_python, answers(messages)))


RULES = (empty_turn, no_trained_turn, too_short, too_long, refusal, code_does_not_parse)


def reject_reason(repaired: Repaired, clean: Clean) -> str | None:
    """Returns why the conversation is not kept, or None."""
    if clean.secrets == "reject" and repaired.secrets:
        return "secret"
    if clean.personal_data == "reject" and repaired.personal:
        return "personal_data"
    return next((rule.__name__ for rule in RULES if rule(repaired.messages, clean)), None)
