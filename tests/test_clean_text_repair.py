"""clean.fix_text: what it repairs, what it leaves, and that its changes are counted and shown."""

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages._clean.text_repair import excerpts, fixed_text, repaired_text
from stages.clean import main
from stages.core.paths import METRICS, RAW, read_json, write_json
from tests.support.cleaning import clean_rows, layout_of, write_raw

REPAIRED = {
    "a curly apostrophe": ("donâ€™t", "don’t"),
    "two words": ("naÃ¯ve cafÃ©", "naïve café"),
    "two words, one of them quoted": ("The “cafÃ©” isnâ€™t open.", "The “café” isn’t open."),
    "more wrong letters than right ones": ("Müller: GrÃ¶ÃŸe und StraÃŸe, schÃ¶n.", "Müller: Größe und Straße, schön."),
    "an apostrophe on each side is no quotation": ("It's a cafÃ© that isn't open.", "It's a café that isn't open."),
    "Windows-1252 as Latin-1": ("price: \x80 5 \x96 10", "price: € 5 – 10"),
    "control characters": ("a\x00b\x07c", "abc"),
    "a colour": ("\x1b[31mFAILED\x1b[0m a.py", "FAILED a.py"),
    "colours of 24 bits": ("\x1b[38;2;255;100;0mwarm\x1b[m", "warm"),
    "a cut colour": ("done\x1b[3", "done"),
    "the title of a window": ("\x1b]0;make\x07ok", "ok"),
    "a link": ("\x1b]8;;http://a.net\x1b\\here\x1b]8;;\x1b\\", "here"),
    "a moved cursor": ("10%\x1b[2K\x1b[1G20%", "10%20%"),
    "a label that begins with the word": (
        "mojibake_sample: the cafÃ© doesnâ€™t open",
        "mojibake_sample: the café doesn’t open",
    ),
    "an escape that begins nothing": ("a\x1bHello", "aHello"),
}
LEFT = {
    "what may be meant": "“curly” &amp; &lt;b&gt; ﬁ ｗｉｄｅ é",
    "escapes in code": "s = '\\x1b[31m'\n\treturn '\t'",
    "other scripts": "naïve Größe — 日本語 🦜 Ελληνικά Привет",
    "capital letters": "A IRMÃ DIZ NÃO ÀS ÂNSIAS. SÃO PAULO, ÉVORA",
    "line ends": "one\r\ntwo\rthree\u2028four\x85five\n",
    "a form feed": "import a\n\f\ndef f():\n\tpass",
    "joiners in emoji": "👩\u200d🔬 🏴\u200d☠️ 👍🏽",
    "joiners in Persian": "می\u200cخواهم",
    "joiners in Hindi": "क्\u200dष, श्री\u200cमान",
    "directions": "שלום\u200f (abc)\u200e",
    "spaces of no width": "ภาษา\u200bไทย",
    "maths": "∑ᵢ aᵢ ≤ ½·(x²+1), 5×10⁻³ µm ± 1 °C",
    "French": "Il a dit :\xa0« À côté »\u202f!",
    "a lesson": "Read as Windows-1252, the é of a UTF-8 file becomes Ã© and ’ becomes â€™.",
    "a lesson in Spanish": "Con otra codificación se lee Ã± en vez de ñ.",
    "code that repairs": "text = 'schÃ¶n Ã¼ber'\nprint(text.encode('latin-1').decode())",
    "a test": "assert fix_mojibake(value) == right  # schÃ¶n, Ã¼ber",
    "one sequence in quotes": "My page shows “Ã©” where a letter should be.",
    "one sequence in backquotes": "Why is there `Ã¼` in my file?",
    "one word in quotes": "It prints 'cafÃ©', and I do not know why.",
    "one wrong word among right ones": "¿Qué? ¡Sí! niño, Â¡no!",
    "letters that look wrong": "5 Â°C? Straße, Ü, ß",
    "a byte order mark that is spoken of": "The byte order mark \ufeff is read as ï»¿.",
    "a lost letter": "An image: \ufffc, a letter: \ufffd",
}


@pytest.mark.parametrize(("text", "fixed"), REPAIRED.values(), ids=REPAIRED)
def test_wrong_text_is_repaired(text, fixed):
    assert fixed_text(text) == fixed
    assert fixed_text(fixed) == fixed


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_text_that_may_be_meant_stays(text):
    assert fixed_text(text) == text


PIECES = ["donâ€™t", "naÃ¯ve", "plain", "&amp;", "\t", " ", "\n", "\r\n", "\x00", "\x0b", "\x0c", "\x1b[31m", "\x7f"]
PIECES += ["\x85", "\u2028", "\ufeff", "\xa0", "Ã", "\x81", "â€", "œ", "é", "Ã ", "\x1a", "ﬁ", "'", "utf-8"]


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=12).map("".join))
def test_a_text_is_changed_by_what_is_counted_only(text):
    """What is left after the codes and controls is the text, or what ftfy makes of it."""
    fixed, kinds = repaired_text(text)
    assert (fixed != text) == bool(kinds)
    assert not kinds["control_characters"] or any(ord(character) < 32 or character == "\x7f" for character in text)
    if not kinds["mojibake"]:
        assert "".join(c for c in fixed if c.isalpha()) in "".join(c for c in text if c.isalpha()) or "\x1b" in text


def test_what_is_repaired_as_mojibake_is_what_ftfy_makes_of_it():
    for text, fixed in [*REPAIRED.values()][:4]:
        assert ftfy.fix_encoding(text) == fixed


def test_a_conversation_about_decoding_is_left_as_a_whole(params_of):
    """The question has two sequences and no quotes. The answer says what they are."""
    asked = "My pages are full of Ã© and Ã¼. What is that?"
    rows = [
        {"source": "x:1", "row": {"prompt": asked, "completion": "The text is UTF-8 and was read as Latin-1."}},
        {"source": "x:2", "row": {"prompt": asked, "completion": "Those are the wrong glyphs, so take another font."}},
    ]
    cleaned = clean_rows(rows, params_of(clean={"min_characters": 1, "fix_text": True, "check_code": False}).clean)
    texts = {record.source: record.messages[0]["content"] for split in cleaned.splits.values() for record in split}
    assert texts == {"x:1": asked, "x:2": "My pages are full of é and ü. What is that?"}


def test_an_excerpt_shows_the_change_with_what_is_around_it():
    before, after = "a" * 100 + "cafÃ©" + "b" * 100, "a" * 100 + "café" + "b" * 100
    assert excerpts(before, after) == f"{'a' * 27}cafÃ©{'b' * 30} → {'a' * 27}café{'b' * 30}"
    assert excerpts("a\x00b", "ab") == "a\x00b → ab"


def test_repairs_are_counted_by_kind_and_shown_without_private_data(tmp_path, monkeypatch, params_of):
    monkeypatch.chdir(tmp_path)
    write_json(RAW / "format.json", layout_of("prompt-completion"))
    texts = [f"Answer {n} of jane.doe{n}@mail.firm.co.uk is the cafÃ© donâ€™t." for n in range(4)]
    texts += [
        "\x1b[1mbold\x1b[0m and a\x00b, and the cafÃ© donâ€™t.",
        *(f"Nothing is wrong with {n}." for n in range(150)),
    ]
    rows = [{"source": f"x:{n}", "row": {"prompt": "Say it", "completion": text}} for n, text in enumerate(texts)]
    write_raw(rows, RAW, shard_rows=2)
    section = {"fix_text": True, "personal_data": "redact", "check_code": False, "near_duplicate_threshold": None}
    main(params_of(clean=section))
    metrics, samples = read_json(METRICS / "clean.json"), read_json(METRICS / "clean.rejected.json")["fixed"]
    assert metrics["fixed"] == 5
    assert metrics["fixed_kinds"] == {"control_characters": 1, "mojibake": 5, "terminal_codes": 1}
    assert len(samples) == 3
    assert {sample["source"] for sample in samples} <= {f"x:{n}" for n in range(5)}
    assert all("cafÃ©" in sample["text"] and "→" in sample["text"] for sample in samples)
    assert not [sample for sample in samples if "jane" in sample["text"] or "firm" in sample["text"]]
    assert {sample["detail"] for sample in samples} <= {
        "2 mojibake",
        "1 control_characters, 2 mojibake, 2 terminal_codes",
    }
