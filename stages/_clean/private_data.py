"""Finds secrets and personal data in a text and puts <SECRET>, <EMAIL>, <IBAN>, <PHONE> or <IP> in their place."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import NamedTuple

# {module of detect_secrets.plugins with the patterns of a vendor's own format: their PrivateKind.needed}.
# The modules for high entropy and for words such as `password =` are left out: most of what they find in source code
# is not a secret.
DETECTORS = {
    "aws": ("aws", "a3t", "abia", "acca", "akia", "asia"),
    "azure_storage_key": ("accountkey=",),
    "basic_auth": ("://",),
    "discord": (re.compile(r"\.[a-zA-Z\d_-]{6}\.[a-zA-Z\d_-]{27}"),),
    "github_token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "gitlab_token": (
        *("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "gr1348941", "glcbt-", "glimt-", "glptt-", "glagent-"),
        "gloas-",
    ),
    "jwt": ("eyj",),
    "mailchimp": ("-us",),
    "npm": ("/:_authtoken=",),
    "openai": ("t3blbkfj",),
    "pypi_token": ("pypi-age",),
    "sendgrid": ("sg.",),
    "slack": ("xox", "hooks.slack.com"),
    "square_oauth": ("sq0csp-",),
    "stripe": ("k_live_",),
    "telegram_token": (re.compile(r":[0-9A-Za-z_-]{35}"),),
    "twilio": (),  # its patterns begin with two letters and need no faster check
}
# In these patterns one group is the secret; in the others the whole match is.
SURROUNDED = ("AWS Access Key", "Basic Auth Credentials")
# detect-secrets matches only the first line of a private key; the lines after it must not be shown either.
PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:.{0,20000}?-----END[A-Z0-9 ]*-----|[\w+/=\s\\]{40,})", re.DOTALL
)
TOKEN_REST = re.compile(r"(?:[\w/+=-]|\.(?=\w))*")  # the end of a token that is longer than its pattern


class PrivateKind(NamedTuple):
    """A kind of secret or personal data, and how to find it."""

    name: str  # <NAME> replaces it in the text
    pattern: re.Pattern
    group: int  # the group of the match that is replaced; 0 is the whole match
    valid: Callable[[str], bool]
    rest: bool  # whether the characters of a token that follow a match directly belong to it
    # Every text with a match has one of these: a string, once the text is casefolded, or a match of a pattern. Most
    # texts have none, and looking for these is much cheaper than `pattern`, because they begin with a fixed character.
    # (): always search.
    needed: tuple[str | re.Pattern, ...]


def may_match(needed: tuple[str | re.Pattern, ...], text: str, casefolded: str) -> bool:
    """Whether the text has what a match needs (see PrivateKind.needed)."""
    for clue in needed:  # any() with a generator takes as long as the search itself
        if clue in casefolded if isinstance(clue, str) else clue.search(text):
            return True
    return not needed


def is_literal(text: str) -> bool:
    """Whether the text is no placeholder, such as {password} or %s."""
    return not re.search(r"[{}<>]|%[sdr(]", text)


def is_email(text: str) -> bool:
    """Whether the address is outside the domains that are reserved for examples."""
    return not re.search(r"[@.]example(\.(com|net|org))?$|\.(invalid|test|example)$", text.lower())


def is_phone(text: str) -> bool:
    return 8 <= sum(character.isdigit() for character in text) <= 15


def is_iban(text: str) -> bool:
    """Whether the check digits are right (ISO 7064, mod 97)."""
    compact = text.replace(" ", "")
    digits = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return len(compact) >= 15 and int(digits) % 97 == 1


def is_public_address(text: str) -> bool:
    if text.count(":") in (1, 2):  # code such as a[::2] and b::c
        return False
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


PERSONAL_KINDS = (
    PrivateKind(
        "EMAIL",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
        *(0, is_email, False),
        (re.compile(r"@(?<=[\w.+-]@)[\w-]{1,63}\."),),
    ),
    # The pattern means \b[A-Z]{2}…, written so that the search can skip everything but capitals.
    PrivateKind(
        "IBAN",
        re.compile(r"[A-Z](?<!\w[A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        *(0, is_iban, False),
        (),
    ),
    PrivateKind(
        "PHONE",
        re.compile(
            r"(?<![\w.)\]+-])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}|(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4})(?![\w-])"
        ),
        *(0, is_phone, False),
        (re.compile(r"\+\d"), re.compile(r"-\d{4}")),
    ),
    PrivateKind(
        "IP",
        re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"),
        *(0, is_public_address, False),
        (re.compile(r"\.\d{1,3}\."), re.compile(r":[0-9A-Fa-f]{0,4}:")),
    ),
)


@cache
def secret_kinds() -> tuple[PrivateKind, ...]:
    """Returns the patterns of detect-secrets' modules in DETECTORS, and PRIVATE_KEY."""
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds = [PrivateKind("SECRET", PRIVATE_KEY, 0, bool, False, ("private key",))]
    for name, needed in DETECTORS.items():
        for value in vars(import_module(f"detect_secrets.plugins.{name}")).values():
            if isinstance(value, type) and issubclass(value, RegexBasedDetector) and value is not RegexBasedDetector:
                grouped = value.secret_type in SURROUNDED
                kinds += [
                    PrivateKind("SECRET", pattern, pattern.groups, is_literal, False, needed)
                    if grouped
                    else PrivateKind("SECRET", pattern, 0, bool, True, needed)
                    for pattern in value.denylist
                ]
    return tuple(kinds)


def redact(text: str, kinds: Iterable[PrivateKind]) -> tuple[str, Counter[str]]:
    """Returns the text with every match replaced, and {name of the kind: number of replacements}."""
    counts: Counter[str] = Counter()
    # `needed` is looked for in the original text: the replacements contain nothing that is needed. Kinds with the same
    # `needed` follow each other, so that it is looked for once.
    original, casefolded, needed, searched = text, text.casefold(), (), True
    for kind in kinds:
        if kind.needed is not needed:
            needed, searched = kind.needed, may_match(kind.needed, original, casefolded)
        if not searched:
            continue
        parts, done = [], 0
        for match in kind.pattern.finditer(text):
            start, end = match.span(kind.group)
            if start < done or not kind.valid(text[start:end]):
                continue
            parts += [text[done:start], f"<{kind.name}>"]
            done = TOKEN_REST.match(text, end).end() if kind.rest else end
            counts[kind.name] += 1
        if parts:
            text = "".join([*parts, text[done:]])
    return text, counts
