"""The rules for one row: what they find, what they leave, that they can be turned off, and that no secret stays."""

import json
import re
from collections import Counter

import ftfy
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages._clean import rules
from stages._clean.private_data import DETECTORS, PERSONAL_KINDS, may_match, redact, secret_kinds
from stages._clean.rules import ASSISTANT, OPENING_CHARACTERS, fixed_text, is_refusal
from stages.clean import main
from stages.core.paths import CLEAN, RAW, read_json, write_json
from tests.support.cleaning import clean_rows, layout_of, write_raw

LAYOUT = layout_of("prompt-completion")
CODE = "def double(number):\n    return 2 * number"
OFF = {
    **{"min_characters": 0, "max_characters": 100_000, "check_code": False, "fix_text": False},
    **{"reject_refusals": False, "secrets": "keep", "personal_data": "keep", "near_duplicate_threshold": None},
    **{"max_malformed_rows": 1000, "decontaminate": []},
}
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "aws": "AK" + "IA" + "QWERTYUIOPASDFGH",
    "aws secret": "aws_secret_key = '" + "wJalrXUtnF" * 4 + "'",
    "azure": "Account" + "Key=" + "a1B2" * 22,
    "basic auth": "https://joe:" + "hunter2hunter2" + "@host.net/x",
    "discord": "M" + "TAy" * 8 + ".Abc-de." + "x1Y" * 9,
    "github": "gh" + "p_" + "a1B2c3" * 6,
    "gitlab": "gl" + "pat-" + "a1B2c3d4e5" * 2,
    "jwt": "ey" + "J0eXAiOiJKV1QiLCJh.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "mailchimp": "0a1b2c3d" * 4 + "-us12",
    "basic auth, encoded": "https://joe:" + "hunter2%40hunter2" + "@host.net/x",
    "npm": "//registry.host/:_auth" + "Token=npm_" + "x1" * 18,
    "openai": "sk" + "-" + "a1B2c3d4e5" * 2 + "T3Blbk" + "FJ" + "a1B2c3d4e5" * 2,
    "private key": "-----BEGIN RSA "
    + "PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEA\n" * 4
    + "-----END RSA PRIVATE KEY-----",
    "private key, cut": "-----BEGIN " + "PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 4,
    "pypi": "py" + "pi-AgEIcHlwaS5vcmc" + "x1" * 40,
    "sendgrid": "S" + "G." + "a1" * 11 + "." + "b" * 43,
    "slack": "xo" + "xb-1234567890-abcdefghij",
    "square": "sq0" + "csp-" + "x" * 43,
    "stripe": "sk" + "_live_" + "a1B2" * 6,
    "telegram": "123456789:" + "AAx" * 11 + "zz",
    "twilio": "A" + "C" + "0a1b2c3d" * 4,
}
VISIBLE = ("aws_secret_key = '", "'", "https://joe:", "@host.net/x")  # around a secret, and no part of it


def pair(completion: str, prompt: str = "Double it") -> dict:
    return {"prompt": prompt, "completion": completion}


@pytest.fixture
def cleaned(params_of):
    """cleaned(*answers, **changes) → the result of clean() with all rules off but those in `changes`."""

    def run(*answers: str, **changes):
        rows = [{"source": f"x:{number}", "row": pair(answer)} for number, answer in enumerate(answers)]
        return clean_rows(rows, params_of(clean={**OFF, **changes}).clean)

    return run


def reasons(result) -> list[str]:
    return [rejection.reason for rejection in result.rejected]


def kept(result) -> list[str]:
    return [record.messages[1]["content"] for split in result.splits.values() for record in split]


FENCED = "Here it is:\n\n```python\n{}\n```\n\nThat's all, isn't it?"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (CODE, True),
        ("Just prose, and no code.", False),
        (FENCED.format(CODE), True),
        (FENCED.format("def double(number"), False),
        (FENCED.format(CODE) + FENCED.format("def f("), False),
        (FENCED.format(CODE) + "\n```bash\n$ python x.py | sort\n```", True),
        ("```bash\n$ ls | sort\n```", False),
        (f"```\n{CODE}\n```", True),
        (f"Prose first:\n~~~py\n{CODE}\n~~~", True),
        (f"Never closed:\n```Python\n{CODE}", True),
        (f"1. In a list:\n\n   ```python title='x.py'\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n", True),
        ('TEXT = """\n```python\nnot (python\n```\n"""', True),
    ],
)
def test_only_fenced_python_must_parse(cleaned, answer, passes):
    assert reasons(cleaned(answer, check_code=True)) == ([] if passes else ["code_does_not_parse"])
    assert reasons(cleaned(answer)) == []


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("Just prose, and no code.", True),
        ("broken(", True),
        ("```bash\n$ ls | sort\n```", True),
        ("```\nls | sort\n```", True),
        (FENCED.format(CODE), True),
        (FENCED.format("def double(number"), False),
        (FENCED.format(CODE) + FENCED.format("def f("), False),
    ],
)
def test_auto_judges_only_blocks_that_are_fenced_as_python(cleaned, answer, passes):
    assert reasons(cleaned(answer, check_code="auto")) == ([] if passes else ["code_does_not_parse"])


@pytest.mark.parametrize(("all_python", "rejected"), [(True, 1), (False, 0)])
def test_auto_judges_the_whole_answer_where_the_data_are_the_embedded_functions(
    tmp_path, monkeypatch, params_of, *, all_python, rejected
):
    monkeypatch.chdir(tmp_path)
    write_json(RAW / "format.json", LAYOUT | {"python": all_python})
    rows = [pair(f"def f():\n    return {n}") for n in range(200)]
    write_raw([{"source": f"x:{number}", "row": row} for number, row in enumerate([*rows, pair("broken(")])], RAW)
    main(params_of(clean={**OFF, "check_code": "auto"}))
    assert pyarrow.parquet.read_table(CLEAN / "rejected.parquet")["reason"].to_pylist() == (
        ["code_does_not_parse"] * rejected
    )


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("As an AI language model, I cannot run code.", True),
        ("I'm sorry, but I can’t help with that.", True),
        ("I cannot assist with this request.", True),
        ("Unfortunately, as a large language model I have no files.", True),
        ("I am afraid of spiders, so this function removes them.", False),
        ("We cannot use a list here, as its items change. Use a tuple.", False),
        ("def refuse():\n    return 'Sorry, I cannot open the file'", False),
        ("class Train:\n    model = 'as an airline'", False),
    ],
)
def test_refusals_are_rejected_and_code_about_them_is_kept(cleaned, answer, refused):
    assert reasons(cleaned(answer, reject_refusals=True)) == ["refusal"] * refused
    assert reasons(cleaned(answer, reject_refusals=False)) == []


# All refusals as one pattern, without the shortcut.
REFUSAL = re.compile(f"{ASSISTANT.pattern}|^(?:{rules.REFUSAL.pattern})", re.IGNORECASE)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.from_regex(REFUSAL) | st.text(max_size=20), st.text("\n .aA\u017f-", max_size=5))
def test_the_shortcut_for_refusals_finds_what_the_full_pattern_finds(text, before):
    assert is_refusal(before + text) == bool(REFUSAL.search((before + text)[:OPENING_CHARACTERS]))


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("donâ€™t", "don’t"),
        ("naÃ¯ve cafÃ©", "naïve café"),
        ("a\x00b\x07c", "abc"),
        ("two\r\nlines", "two\nlines"),
        ("“curly” &amp; &lt;b&gt; ﬁ ｗｉｄｅ é", None),
        ("s = '\\x1b[31m'\n\treturn '\t'", None),
        ("naïve Größe — 日本語 🦜", None),
    ],
)
def test_mojibake_and_control_characters_are_repaired_and_the_rest_stays(cleaned, text, fixed):
    assert fixed_text(text) == (fixed or text)
    result = cleaned(text, "sound", fix_text=True)
    assert kept(result) == [fixed or text, "sound"] or set(kept(result)) == {fixed or text, "sound"}
    assert result.metrics["fixed"] == (fixed is not None)
    assert set(kept(cleaned(text))) == {text}


LINES = [
    "donâ€™t",
    "naÃ¯ve",
    "plain",
    "&amp;",
    "\t",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1b[31m",
    "\x7f",
]
LINES += ["\x85", "\u2028", "\ufeff", "\xa0", "Ã", "\x81", "â€", "œ", "é", "Ã ", "\x1a", "ﬁ"]


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from(LINES) | st.characters(codec="utf-8"), max_size=12).map("".join))
def test_lines_that_skip_ftfy_are_those_that_ftfy_does_not_change(text):
    keep = {"unescape_html": False, "uncurl_quotes": False, "fix_latin_ligatures": False, "normalization": None}
    keep |= {"fix_character_width": False, "remove_terminal_escapes": False}
    assert fixed_text(text) == ftfy.fix_text(text, **keep)


def test_every_ascii_character_comes_out_as_from_ftfy():
    for code in range(128):
        text = f"def f():\n\treturn {chr(code)}{chr(code)} \n"
        assert fixed_text(text) == ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False)


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_redacted_or_rejects_its_row(cleaned, secret):
    answer = f"connect([{{{secret!r}}}])" if "\n" not in secret else f'KEY = """{secret}"""\nuse(KEY)'
    redacted = cleaned(answer, secrets="redact")
    (text,) = kept(redacted)
    bare = secret
    for words in VISIBLE:
        bare = bare.removeprefix(words).removesuffix(words)
    assert "<SECRET>" in text
    assert not [bare[n : n + 9] for n in range(len(bare) - 8) if bare[n : n + 9] in text]
    assert redacted.metrics["redacted"]["SECRET"] == 1
    rejected = cleaned(answer, secrets="reject")
    assert reasons(rejected) == ["secret"]
    assert rejected.rejected[0].record.messages[1]["content"] == text
    assert rejected.rejected[0].record.source == "x:0"
    assert kept(cleaned(answer)) == [answer]


def test_every_detector_has_patterns_and_a_sample():
    assert len(secret_kinds()) >= len(DETECTORS) + 1
    hit = {kind.pattern.pattern for kind in secret_kinds() for secret in SECRETS.values() if redact(secret, [kind])[1]}
    assert len(hit) >= len(DETECTORS) + 1


@pytest.mark.parametrize(
    "kind", [*secret_kinds(), *PERSONAL_KINDS], ids=lambda kind: f"{kind.name} {kind.pattern.pattern[:30]}"
)
def test_the_shortcut_for_a_pattern_misses_no_match(kind):
    """The texts are made from the patterns, so this also fails if a new detect-secrets has other patterns."""

    @settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @given(st.from_regex(kind.pattern))
    def check(text):
        assert kind.pattern.search(text) is None or not kind.needed or may_match(kind.needed, text, text.casefold())
        everywhere = [kind._replace(needed=()) for kind in (*secret_kinds(), *PERSONAL_KINDS)]
        assert redact(text, (*secret_kinds(), *PERSONAL_KINDS)) == redact(text, everywhere)

    check()


PIECES = [*SECRETS.values(), "<SECRET>", "https", "://", "@", ":", "-", "x", " ", "AWS", "DE89370400440532013000", "_1"]
PIECES += ["a.b@c.de", "+49 170 1234567", "(555) 123-4567", "8.8.8.8", "2606:4700::1111", "\u212a", "\u017f", "ß", "\n"]


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_the_shortcuts_change_nothing_in_texts_with_several_kinds(text):
    everywhere = [kind._replace(needed=()) for kind in (*secret_kinds(), *PERSONAL_KINDS)]
    assert redact(text, (*secret_kinds(), *PERSONAL_KINDS)) == redact(text, everywhere)


IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.lists(st.from_regex(IBAN) | st.sampled_from(["X", "é", "_", "9", " ", "-", "A1"]), max_size=6).map("".join))
def test_an_iban_begins_where_a_word_begins(text):
    (kind,) = (kind for kind in PERSONAL_KINDS if kind.name == "IBAN")
    assert [match.span() for match in kind.pattern.finditer(text)] == [match.span() for match in IBAN.finditer(text)]


@pytest.mark.parametrize(
    "text",
    [
        "password = 'hunter2'",
        "digest = 'd41d8cd98f00b204e9800998ecf8427e'",
        "token = os.environ['TOKEN']",
        "if line.startswith('-----BEGIN PRIVATE KEY-----'):\n    read(line)",
        "url = f'https://{user}:{password}@{host}'",
    ],
)
def test_code_about_secrets_is_not_a_secret(text):
    assert redact(text, secret_kinds()) == (text, Counter())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.firm.co.uk.", "write to <EMAIL>."),
        ("a@b.de, c@d.fr", "<EMAIL>, <EMAIL>"),
        ("jane@example.com and joe@mail.example", None),
        ("@app.route('/')\nx = a @ b.c", None),
        ("call +49 170 1234567 now", "call <PHONE> now"),
        ("call (555) 123-4567 or 555-123-4567", "call <PHONE> or <PHONE>"),
        ("+44 (20) 7946 0958", "<PHONE>"),
        ("x = y+12345678901\nz = 2024-01-02", None),
        ("n = 1234567890\nm = a[1]+123456789012", None),
        ("IBAN DE89 3704 0044 0532 0130 00!", "IBAN <IBAN>!"),
        ("GB82WEST12345698765432", "<IBAN>"),
        ("GB83WEST12345698765432", None),
        ("connect('8.8.8.8')", "connect('<IP>')"),
        ("2606:4700:4700::1111", "<IP>"),
        ("127.0.0.1 192.168.0.1 0.0.0.0 ::1 256.1.1.1 1.2.3.4.5", None),
        ("a[1:2] b::c 12:30:45 std::vector x[::2]", None),
    ],
)
def test_personal_data_is_found_and_lookalikes_are_not(text, expected):
    redacted, counts = redact(text, PERSONAL_KINDS)
    assert redacted == (expected or text)
    assert bool(counts) == (expected is not None)


def test_personal_data_is_redacted_counted_rejected_or_kept_as_asked(cleaned):
    answer = "mail('a@b.de', 'c@d.fr', '8.8.8.8')"
    assert kept(cleaned(answer)) == [answer]
    redacted = cleaned(answer, personal_data="redact")
    assert kept(redacted) == ["mail('<EMAIL>', '<EMAIL>', '<IP>')"]
    assert redacted.metrics["redacted"] == {"EMAIL": 2, "IP": 1}
    assert reasons(cleaned(answer, personal_data="reject")) == ["personal_data"]
    assert reasons(cleaned(answer, personal_data="redact", secrets="reject")) == []


@pytest.mark.parametrize("choice", ["reject", "redact"])
def test_no_secret_reaches_a_file_or_the_terminal(tmp_path, monkeypatch, capsys, params_of, choice):
    """Rows that are kept, rejected for the secret, rejected for another reason, or malformed do not show it."""
    monkeypatch.chdir(tmp_path)
    write_json(RAW / "format.json", LAYOUT)
    secret = SECRETS["github"]
    rows = [pair(f"def f():\n    return {n}") for n in range(200)]
    rows += [pair(f"token = {secret!r}"), pair(f"broken( {secret}"), pair(CODE, secret), {"text": secret}]
    lines = [{"source": f"x:{number}", "row": row} for number, row in enumerate(rows)] + [
        {"source": "x:cut", "unreadable": f'{{"prompt": "{secret}', "why": "column 1: no"}
    ]
    write_raw(lines, RAW)
    print(main(params_of(clean={**OFF, "check_code": True, "secrets": choice})).message)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != tmp_path / RAW]
    text = capsys.readouterr().out + "".join(
        json.dumps(pyarrow.parquet.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        for path in written
    )
    assert secret[6:20] not in text
    shown = (tmp_path / "metrics/clean.rejected.json").read_text().count("<SECRET>")
    assert text.count("<SECRET>") - shown == 5
    assert shown >= 3
    rejected = pyarrow.parquet.read_table(CLEAN / "rejected.parquet").to_pylist()
    assert Counter(row["reason"] for row in rejected) == (
        {"secret": 3, "malformed": 2} if choice == "reject" else {"code_does_not_parse": 1, "malformed": 2}
    )
    assert read_json(tmp_path / "metrics" / "clean.json")["redacted"] == {"SECRET": 5}
