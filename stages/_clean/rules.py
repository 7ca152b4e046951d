"""The rules that look at one conversation alone: a function's name is the reason that rejected.parquet gives."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from stages._clean.formats import Messages
from stages._clean.private_data import PERSONAL, redact, secrets
from stages.core.params import Clean
from stages.core.python_syntax import parse, python_in

# Each contains "as a", which is looked for first; ASSISTANT by itself takes many times as long.
ASSISTANT = re.compile(
    r"\bas an? (ai|artificial intelligence|large language|language)\b[^.\n]{0,20}\b(model|assistant)\b|\bas an ai\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\W*((i['\u2019]?m|i am) (sorry|afraid)\b[^.\n]{0,30}\b(can['\u2019]?t|cannot|can not|unable|not able)\b|"
    r"(i|we) (can['\u2019]?t|cannot|am unable to|am not able to) (assist|help|provide|fulfil|comply|answer))",
    re.IGNORECASE,
)
OPENING = 300  # characters of an answer in which a refusal is looked for


class Mended(NamedTuple):
    messages: Messages
    fixed: bool
    secrets: Counter[str]
    personal: Counter[str]


@cache
def fixer() -> Callable[[str], str]:
    from ftfy import TextFixerConfig, fix_text

    keep = {"unescape_html": False, "uncurl_quotes": False, "fix_latin_ligatures": False}
    keep |= {"fix_character_width": False, "remove_terminal_escapes": False, "normalization": None}
    return partial(fix_text, config=TextFixerConfig(**keep))


def plain(text: str) -> bool:
    """Nothing but printable ASCII, tabs and new lines, of which ftfy takes nothing away."""
    return text.isascii() and text.replace("\n", "").replace("\t", "").isprintable()


def fixed_text(text: str) -> str:
    """Without mojibake and control characters. What may be meant, such as curly quotes or &amp; in code, stays."""
    if plain(text):
        return text
    fix = fixer()
    # ftfy too looks at each line by itself, and takes its time for it.
    return "".join(line if plain(line) else fix(line) for line in re.split(r"(?<=\n)", text))


def mend(messages: Messages, clean: Clean) -> Mended:
    """The conversation as it is to be written, kept or not: a row that goes for a secret must not show it either."""
    private: dict[str, Counter[str]] = {"secrets": Counter(), "personal": Counter()}
    kinds = {
        "secrets": () if clean.secrets == "keep" else secrets(),
        "personal": () if clean.personal_data == "keep" else PERSONAL,
    }
    fixed, turns = False, []
    for message in messages:
        text = fixed_text(message["content"]) if clean.fix_text else message["content"]
        fixed |= text != message["content"]
        for name, each in kinds.items():
            text, found = redact(text, each)
            private[name] += found
        turns.append({"role": message["role"], "content": text})
    return Mended(turns, fixed, **private)


def answers(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def empty_turn(messages: Messages, clean: Clean) -> bool:
    return not all(message["content"].strip() for message in messages)


def too_short(messages: Messages, clean: Clean) -> bool:
    return min(map(len, answers(messages))) < clean.min_characters


def too_long(messages: Messages, clean: Clean) -> bool:
    return sum(len(message["content"]) for message in messages) > clean.max_characters


def refuses(answer: str) -> bool:
    opening = answer[:OPENING]
    return bool(REFUSAL.match(opening) or ("as a" in opening.casefold() and ASSISTANT.search(opening)))


def refusal(messages: Messages, clean: Clean) -> bool:
    return clean.reject_refusals and any(map(refuses, answers(messages)))


def parses(answer: str) -> bool:
    """As a whole (a string in Python may hold a fence), or else the code it holds."""
    return parse(answer) is not None or all(parse(code) is not None for code in python_in(answer))


def code_does_not_parse(messages: Messages, clean: Clean) -> bool:
    return clean.check_code and not all(map(parses, answers(messages)))


RULES = (empty_turn, too_short, too_long, refusal, code_does_not_parse)


def reject_reason(mended: Mended, clean: Clean) -> str | None:
    """Why a conversation is not kept, or None."""
    if clean.secrets == "reject" and mended.secrets:
        return "secret"
    if clean.personal_data == "reject" and mended.personal:
        return "personal_data"
    return next((rule.__name__ for rule in RULES if rule(mended.messages, clean)), None)
