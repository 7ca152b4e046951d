"""Makes the invisible characters of untrusted text visible."""

import unicodedata

# Controls, format characters (bidirectional overrides among them), lone surrogates, odd line separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The zero-width joiner and non-joiner belong to the spelling of words and emoji.
SHOWN_AS_THEY_ARE = {"\n", "\t", "\u200c", "\u200d"}


def visible(text: str) -> str:
    r"""The text with each invisible character spelled out. An ANSI colour shows as \x1b[31m and has no effect."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in INVISIBLE and character not in SHOWN_AS_THEY_ARE
        else character
        for character in text.replace("\r\n", "\n")
    )
