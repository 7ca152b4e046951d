"""What a kind of secret or personal data is, and which values are placeholders of documentation."""

import re
from collections.abc import Callable
from typing import NamedTuple


class PrivateKind(NamedTuple):
    """A kind of secret or personal data, and how to find it."""

    name: str  # <NAME> replaces it in the text
    pattern: re.Pattern
    group: int  # the group of the match that is replaced; 0 is the whole match
    valid: Callable[[re.Match], bool]
    # Every text with a match has one of these: a string, in small or capital letters, or a match of a pattern. RE2
    # looks for those of all kinds in one pass, so a pattern here has no look-around and no flags. (): always search.
    needed: tuple[str | re.Pattern, ...]


PLACEHOLDER_WORDS = re.compile(
    r"example|your|placeholder|changeme|change[-_]me|dummy|sample|redacted|insert|replace|notreal|fake|secret_?key|"
    r"x{4,}|\*{3}|\.{3}|…|[<>{}$]|(.)\1{5,}",
    re.IGNORECASE,
)
PERIODIC = re.compile(r"(.{3,12}?)\1{2,}")  # a short piece three times or more, such as abc123abc123abc123
SHORTEST_RUN, SHORTEST_ALTERNATE_RUN = 8, 6


def longest_run(text: str) -> int:
    """Returns the length of the longest run in which each character is the next one of the alphabet or digits."""
    longest = length = 1
    for before, after in zip(text, text[1:], strict=False):
        length = length + 1 if ord(after) - ord(before) == 1 or (before, after) in (("9", "0"), ("9", "a")) else 1
        longest = max(longest, length)
    return longest


def is_placeholder(secret: str) -> bool:
    """Whether no vendor issued the value: a word such as EXAMPLE, a repeated piece, or letters in their order."""
    if PLACEHOLDER_WORDS.search(secret) or PERIODIC.search(secret):
        return True
    # Some keys begin with a number that may well be 1234567890; the longest part is the random one.
    longest = max(re.split(r"[-_.:/]", secret), key=len).lower()
    lower = re.sub(r"(.)\1", r"\1", longest)  # aabbccdd is an alphabet too
    if len(set(lower)) < min(8, len(lower) / 2):
        return True
    alternate = max(longest_run(lower[::2]), longest_run(lower[1::2]))
    return longest_run(lower) >= SHORTEST_RUN or alternate >= SHORTEST_ALTERNATE_RUN
