"""Repairs text: wrongly decoded characters (mojibake), the codes of terminals, and control characters.

Text that talks about wrong decoding, or code that handles it, stays as it is. So does everything that may be meant:
curly quotes, joiners between letters or emoji, line ends, &amp; in code.
"""

import re
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import cache, partial
from os.path import commonprefix
from typing import NamedTuple

# The colours and moves of a terminal, whole: CSI (also one cut off at the end), OSC, character sets, saved cursors.
TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|\Z)|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()*+][0-~]|[78=>])")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")  # tabs, line ends and form feeds stay
WINDOWS_CONTROL = re.compile(r"[\x80-\x84\x86-\x9f]")  # what Windows-1252 text becomes when it is read as Latin-1
ABOUT_DECODING = re.compile(
    r"mojibake(?!_)|\butf-?(?:8|16)|\blatin-?1\b|\biso-?8859|\bcp-?125\d|windows-?125\d|\bunicode|\bcharsets?\b|"
    r"(?:character|text|wrong|file|source)[ _]encoding|\b(?:en|de)cod(?:e|ed|ing)\b[ (]|\bcodecs?\b|\bftfy\b|"
    r"byte[ -]order mark|\bBOM\b|zeichenkodierung|zeichensatz|codificaci[oó]n|codifica[cç][aã]o|codifica\b|encodage",
    re.IGNORECASE,
)
AROUND, SHOWN_CHARACTERS = 30, 150  # characters of an excerpt: on each side of a change, and at most
OPENING, CLOSING = r"(?<!\w)[\"'`«„“‘‹「『]", r"[\"'`»”’›“‘」』](?!\w)"


class FixedText(NamedTuple):
    """A text after its repair, and in how many places it was changed, by kind."""

    text: str
    kinds: Counter[str]


@cache
def decoder(*, fix_controls: bool) -> Callable[[str], str]:
    """Returns ftfy's fix_text with only the fixes for wrongly decoded characters."""
    from ftfy import TextFixerConfig, fix_text

    off = ("unescape_html", "uncurl_quotes", "fix_latin_ligatures", "fix_character_width", "remove_terminal_escapes")
    off += ("fix_line_breaks", "fix_surrogates", "remove_control_chars")
    keep = dict.fromkeys(off, False) | {"normalization": None, "fix_c1_controls": fix_controls}
    return partial(fix_text, config=TextFixerConfig(**keep))


def is_plain_text(text: str) -> bool:
    """Whether the text has only printable ASCII, tabs and line ends, so that nothing can be wrong with it."""
    return text.isascii() and text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable()


def is_about_decoding(text: str) -> bool:
    """Whether a text talks about how characters are decoded. It may show mojibake on purpose."""
    return ABOUT_DECODING.search(text) is not None


def any_about_decoding(texts: list[str]) -> bool:
    """Whether one of a conversation's texts is about decoding. It matters only if one is outside ASCII."""
    return not all(map(str.isascii, texts)) and any(map(is_about_decoding, texts))


def fixed_text(text: str) -> str:
    """Returns the text without mojibake, terminal codes and control characters."""
    return repaired_text(text).text


def repaired_text(text: str, *, about_decoding: bool = False) -> FixedText:
    """Repairs a text.

    Args:
        about_decoding: the conversation talks about wrong decoding, so mojibake stays.
    """
    kinds: Counter[str] = Counter()
    if is_plain_text(text):
        return FixedText(text, kinds)
    if "\x1b" in text:
        text, kinds["terminal_codes"] = TERMINAL.subn("", text)
    text, kinds["control_characters"] = CONTROL.subn("", text)
    if not text.isascii() and not about_decoding and not is_about_decoding(text):
        text, kinds["mojibake"] = without_mojibake(text)
    return FixedText(text, +kinds)


def without_mojibake(text: str) -> tuple[str, int]:
    """Returns the text with its mojibake repaired, and how many sequences that were. In doubt the text stays."""
    fix_controls = WINDOWS_CONTROL.search(text) is not None
    decode = decoder(fix_controls=fix_controls)
    # ftfy also treats each line separately, but it is slow on lines that need nothing. U+0085 may be such a line's end.
    lines = re.split("(\n)" if fix_controls else "(\n|\x85)", text)
    decoded = [line if line.isascii() or line == "\x85" else decode(line) for line in lines]
    pairs = [(before, after) for before, after in zip(lines, decoded, strict=True) if before != after]
    if not pairs:
        return text, 0
    wrong, right = words_by_change(pairs)
    right += [line for line, after in zip(lines, decoded, strict=True) if line == after]
    if is_quoted(wrong, pairs[0][0]) or sum(map(count_letters, right)) >= len(wrong):
        return text, 0
    return "".join(decoded), len(wrong)


def words_by_change(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Returns the words that a repair changes, and the text between them that it leaves.

    Args:
        pairs: (line, repaired line).
    """
    wrong, right = [], []
    for before, after in pairs:
        words, repaired = (re.findall(r"\s+|\S+", line) for line in (before, after))
        for kind, a, b, _, _ in SequenceMatcher(None, words, repaired, autojunk=False).get_opcodes():
            if kind == "equal":
                right.append("".join(words[a:b]))
            else:
                wrong += [word for word in words[a:b] if not word.isascii()]
    return wrong, right


def is_quoted(wrong: list[str], line: str) -> bool:
    """Whether the only word with mojibake is in quotes, as an example is."""
    if len(wrong) != 1:
        return False
    sequence = re.escape(re.search(r"[^\x00-\x7f]+", wrong[0])[0].lstrip("«„“‘‹「『").rstrip("»”’›“‘」』"))
    return re.search(f"{OPENING}[^\n]*?{sequence}[^\n]*?{CLOSING}", line) is not None


def count_letters(text: str) -> int:
    """Counts the Latin letters outside ASCII. If enough of them are right, the text as a whole was decoded well."""
    return sum("\xc0" <= letter <= "\u017f" and letter.isalpha() for letter in text)


def excerpts(before: str, after: str) -> str:
    """Returns `before → after` of the part of a text that a repair changed."""
    begin = max(0, len(commonprefix([before, after])) - AROUND)
    end = max(0, len(commonprefix([before[:begin:-1], after[:begin:-1]])) - AROUND)
    old, new = (text[begin : len(text) - end][:SHOWN_CHARACTERS] for text in (before, after))
    return f"{old} → {new}"
