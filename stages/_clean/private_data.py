"""Finds secrets and personal data in a text and puts <SECRET>, <EMAIL>, <IBAN>, <PHONE>, … in their place.

The patterns of secrets are our own. On the labelled texts of tests/support/labelled_secrets.py the libraries that could
be had found fewer of them: detect-secrets 1.5.0 found 39 %, and kingfisher-secret-scanner 1.5.0 66 %.
"""

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

from stages._clean.personal_data import PERSONAL_KINDS
from stages._clean.private_kind import PrivateKind
from stages._clean.vendor_keys import SECRET_KINDS

ALL_KINDS = (*SECRET_KINDS, *PERSONAL_KINDS)
MEMORY = 64 * 2**20  # bytes for the automaton that looks for all clues at once; it takes a small part of them


def secret_kinds() -> tuple[PrivateKind, ...]:
    return SECRET_KINDS


@cache
def clue_search() -> tuple[object, list[int]]:
    """Returns what looks for all clues in one pass, and for each clue the id of the pattern that needs it."""
    import re2

    options = re2.Options()
    options.max_mem = MEMORY
    search, owners = re2.Set.SearchSet(options), []
    for kind in ALL_KINDS:
        for clue in kind.needed:
            search.Add(f"(?i){re2.escape(clue)}" if isinstance(clue, str) else clue.pattern)
            owners.append(id(kind.pattern))
    search.Compile()
    return search, owners


@lru_cache(maxsize=1)  # secrets and personal data are looked for one after the other
def possible_patterns(text: str) -> set[int]:
    """Returns the ids of the patterns that may match, because the text has what they need (see PrivateKind.needed)."""
    search, owners = clue_search()
    return {owners[place] for place in search.Match(text.encode("utf-8", "replace")) or ()}


def redact(text: str, kinds: Iterable[PrivateKind]) -> tuple[str, Counter[str]]:
    """Returns the text with every match replaced, and {name of the kind: number of replacements}."""
    counts: Counter[str] = Counter()
    # Clues are looked for in the original text: the replacements contain nothing that is needed.
    possible = possible_patterns(text)
    for kind in kinds:
        if kind.needed and id(kind.pattern) not in possible:
            continue
        parts, done = [], 0
        for match in kind.pattern.finditer(text):
            start, end = match.span(kind.group)
            if start < done or not kind.valid(match):
                continue
            parts += [text[done:start], f"<{kind.name}>"]
            done = end
            counts[kind.name] += 1
        if parts:
            text = "".join([*parts, text[done:]])
    return text, counts


def redact_json(text: str, kinds: Iterable[PrivateKind]) -> tuple[str, Counter[str]]:
    """Redacts the texts and numbers in a JSON text, so that it stays JSON. A redacted number becomes a text.

    JSON writes a line end as the letter n after a backslash, which would hide a key at the start of a line.
    """
    counts: Counter[str] = Counter()

    def of_value(value: object, key: str) -> object:
        if isinstance(value, dict):
            return {of_value(name, ""): of_value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [of_value(item, key) for item in value]
        if isinstance(value, bool | None):
            return value
        # A key such as `phone` tells what the value is.
        lead = f"{key}: " if key else ""
        given = lead + (value if isinstance(value, str) else json.dumps(value))
        changed, found = redact(given, kinds)
        if not found or not changed.startswith(lead):
            return value
        counts.update(found)
        return changed.removeprefix(lead)

    try:
        redacted = of_value(json.loads(text), "")
    except ValueError:  # a column of clean.keep_fields that is named like a turn with JSON
        return redact(text, kinds)
    return (json.dumps(redacted, ensure_ascii=False) if counts else text), counts
