"""Secrets and personal data in a text: what they are, and the text with <EMAIL> and its like in their place."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import NamedTuple

# Modules of detect_secrets.plugins whose patterns name a vendor's own format, each with what Kind.needed says of them.
# Modules for high entropy and for words such as `password =` are left out: in source code most of what they find is
# none.
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
    "twilio": (),  # its patterns begin with two letters, which is as quick
}
SURROUNDED = ("AWS Access Key", "Basic Auth Credentials")  # here a group is the secret; elsewhere the whole match
# detect-secrets knows a private key by its first line; what must not be seen are the others.
PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:.{0,20000}?-----END[A-Z0-9 ]*-----|[\w+/=\s\\]{40,})", re.DOTALL
)
REST = re.compile(r"(?:[\w/+=-]|\.(?=\w))*")  # of a token longer than its pattern


class Kind(NamedTuple):
    name: str  # stands in the text as <NAME>
    pattern: re.Pattern
    group: int
    valid: Callable[[str], bool]
    rest: bool  # whether what goes on directly behind a match belongs to it
    # A text with a match has one of these: a string, once it is casefolded, or something that a pattern finds. Most
    # texts have none, and to look for them is far cheaper: these patterns begin with a fixed character. (): not known.
    needed: tuple[str | re.Pattern, ...]


def has_one(needed: tuple[str | re.Pattern, ...], text: str, casefolded: str) -> bool:
    for each in needed:  # any() with a generator takes as long as the search
        if each in casefolded if isinstance(each, str) else each.search(text):
            return True
    return not needed


def is_literal(text: str) -> bool:
    """No placeholder, such as {password} or %s."""
    return not re.search(r"[{}<>]|%[sdr(]", text)


def is_email(text: str) -> bool:
    """Not those at the domains that are reserved for examples."""
    return not re.search(r"[@.]example(\.(com|net|org))?$|\.(invalid|test|example)$", text.lower())


def is_phone(text: str) -> bool:
    return 8 <= sum(character.isdigit() for character in text) <= 15


def is_iban(text: str) -> bool:
    """By its check digits (ISO 7064, mod 97)."""
    compact = text.replace(" ", "")
    digits = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return len(compact) >= 15 and int(digits) % 97 == 1


def is_public_address(text: str) -> bool:
    if text.count(":") in (1, 2):  # a[::2] and b::c are code
        return False
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


PERSONAL = (
    Kind(
        "EMAIL",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
        *(0, is_email, False),
        (re.compile(r"@(?<=[\w.+-]@)[\w-]{1,63}\."),),
    ),
    # It begins as \b[A-Z]{2} would, put so that the search can skip what is no capital.
    Kind(
        "IBAN",
        re.compile(r"[A-Z](?<!\w[A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        *(0, is_iban, False),
        (),
    ),
    Kind(
        "PHONE",
        re.compile(
            r"(?<![\w.)\]+-])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}|(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4})(?![\w-])"
        ),
        *(0, is_phone, False),
        (re.compile(r"\+\d"), re.compile(r"-\d{4}")),
    ),
    Kind(
        "IP",
        re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"),
        *(0, is_public_address, False),
        (re.compile(r"\.\d{1,3}\."), re.compile(r":[0-9A-Fa-f]{0,4}:")),
    ),
)


@cache
def secrets() -> tuple[Kind, ...]:
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds = [Kind("SECRET", PRIVATE_KEY, 0, bool, False, ("private key",))]
    for name, needed in DETECTORS.items():
        for value in vars(import_module(f"detect_secrets.plugins.{name}")).values():
            if isinstance(value, type) and issubclass(value, RegexBasedDetector) and value is not RegexBasedDetector:
                grouped = value.secret_type in SURROUNDED
                kinds += [
                    Kind("SECRET", pattern, pattern.groups, is_literal, False, needed)
                    if grouped
                    else Kind("SECRET", pattern, 0, bool, True, needed)
                    for pattern in value.denylist
                ]
    return tuple(kinds)


def redact(text: str, kinds: Iterable[Kind]) -> tuple[str, Counter[str]]:
    """The text without what is of one of these kinds, and how much of each there was."""
    found: Counter[str] = Counter()
    # What is needed is looked for in the text as it comes: what is put into it later holds none of it. Kinds that need
    # the same stand side by side.
    original, casefolded, needed, searched = text, text.casefold(), (), True
    for kind in kinds:
        if kind.needed is not needed:
            needed, searched = kind.needed, has_one(kind.needed, original, casefolded)
        if not searched:
            continue
        parts, done = [], 0
        for match in kind.pattern.finditer(text):
            start, end = match.span(kind.group)
            if start < done or not kind.valid(text[start:end]):
                continue
            parts += [text[done:start], f"<{kind.name}>"]
            done = REST.match(text, end).end() if kind.rest else end
            found[kind.name] += 1
        if parts:
            text = "".join([*parts, text[done:]])
    return text, found
