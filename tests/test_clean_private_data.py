"""Secrets and personal data: what is found, what only looks so, and that no secret reaches a file."""

import json
from collections import Counter
from random import Random

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages._clean.private_data import PERSONAL_KINDS, redact, redact_json, secret_kinds
from stages._clean.vendor_keys import FORMS
from stages.clean import main
from stages.core.paths import CLEAN, RAW, read_json, write_json
from tests.support.cleaning import OFF, clean_rows, kept, layout_of, pair, reasons, write_raw
from tests.support.labelled_personal import texts_with_personal_data, texts_without_personal_data
from tests.support.labelled_secrets import KEYS, made, texts_with_secrets, texts_without_secrets

LAYOUT = layout_of("prompt-completion")
CODE = "def double(number):\n    return 2 * number"
SECRETS = {kind: (text, secret) for kind, text, secret in texts_with_secrets()}
PERSONAL = texts_with_personal_data()
# What docs/own-data.md states.
LEAST_SECRETS = {"recall": 0.99, "precision": 0.99}
LEAST_PERSONAL = {"recall": 0.97, "precision": 0.98}


def measured(positive: list[tuple[str, str, str]], negative: list[str], kinds) -> tuple[dict[str, float], list[str]]:
    """Returns recall and precision, and the texts that were judged wrong. A find that leaves some of it is none."""
    missed = [text for _, text, data in positive if data in redact(text, kinds)[0] or not redact(text, kinds)[1]]
    alarms = [text for text in negative if redact(text, kinds)[1]]
    found = len(positive) - len(missed)
    return {"recall": found / len(positive), "precision": found / (found + len(alarms))}, missed + alarms


def test_the_secrets_that_vendors_issue_are_found_and_placeholders_are_not():
    positive, negative = texts_with_secrets(), texts_without_secrets()
    assert len(positive) >= 150
    assert len(negative) >= 300
    figures, wrong = measured(positive, negative, secret_kinds())
    assert all(figures[name] >= least for name, least in LEAST_SECRETS.items()), (figures, wrong)


def test_personal_data_is_found_and_what_only_looks_so_is_not():
    negative = texts_without_personal_data()
    assert len(PERSONAL) >= 150
    assert len(negative) >= 300
    figures, wrong = measured(PERSONAL, negative, PERSONAL_KINDS)
    assert all(figures[name] >= least for name, least in LEAST_PERSONAL.items()), (figures, wrong)


def test_personal_data_is_named_by_its_kind():
    wrong = [(kind, text) for kind, text, _ in PERSONAL if set(redact(text, PERSONAL_KINDS)[1]) != {kind}]
    assert wrong == []


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_is_redacted_whole_and_rejects_its_row(cleaned, text, secret):
    redacted = cleaned(text, secrets="redact")
    (left,) = kept(redacted)
    before, after = text.split(secret)
    assert left.startswith(before.removesuffix("https://"))  # the text around it stays
    assert left.endswith(after)
    shown = left.removeprefix(before).removesuffix(after)
    assert not [
        secret[n : n + 12] for n in range(len(secret) - 11) if secret[n : n + 12] in shown.replace("https://", "")
    ]
    assert redacted.metrics["redacted"] == {"SECRET": 1}
    rejected = cleaned(text, secrets="reject")
    assert reasons(rejected) == ["secret"]
    assert rejected.rejected[0].record.messages[1]["content"] == left
    assert kept(cleaned(text)) == [text]


def test_every_form_has_a_labelled_key():
    texts = [text for text, _ in SECRETS.values()]
    unused = [
        form for form, kind in zip(FORMS.values(), secret_kinds()[2:], strict=False) if not any_found(texts, kind)
    ]
    assert len(unused) <= len(FORMS) // 5, unused


def any_found(texts: list[str], kind) -> bool:
    return any(redact(text, [kind])[1] for text in texts)


def test_the_shortcuts_change_nothing():
    texts = [text for _, text, _ in texts_with_secrets() + PERSONAL]
    kinds = (*secret_kinds(), *PERSONAL_KINDS)
    everywhere = [kind._replace(needed=()) for kind in kinds]
    for text in texts + texts_without_secrets() + texts_without_personal_data():
        assert redact(text, kinds) == redact(text, everywhere)


PIECES = [*(secret for _, secret in SECRETS.values()), *(data for _, _, data in PERSONAL)]
PIECES += [
    "<SECRET>",
    "https",
    "://",
    "@",
    ":",
    "-",
    "x",
    " ",
    "AWS",
    "tel. ",
    "order ",
    "_1",
    "\u212a",
    "\u017f",
    "ß",
    "\n",
]


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_the_shortcuts_change_nothing_in_texts_with_several_kinds(text):
    kinds = (*secret_kinds(), *PERSONAL_KINDS)
    assert redact(text, kinds) == redact(text, [kind._replace(needed=()) for kind in kinds])


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from([*texts_without_secrets(), "'", '"', "\n", "@", "://a:b"]), max_size=6).map("\n".join))
def test_code_is_never_cut_from_one_quote_to_the_next(text):
    redacted, _ = redact(text, secret_kinds())
    assert redacted.count("'") + redacted.count('"') == text.count("'") + text.count('"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.firm.co.uk.", "write to <EMAIL>."),
        ("a@b.de, c@d.fr", "<EMAIL>, <EMAIL>"),
        ("call +49 170 1234567 now", "call <PHONE> now"),
        ("call (212) 555-0123 or 212-555-0124", "call <PHONE> or <PHONE>"),
        ("Order no. 2125550187; call 2125550188", "Order no. 2125550187; call <PHONE>"),
        ("IBAN DE89 3704 0044 0532 0130 00!", "IBAN <IBAN>!"),
        ("connect('93.184.216.34')", "connect('<IP>')"),
        ("2a02:8106:21:4e00::7", "<IP>"),
        ("127.0.0.1 192.168.0.1 0.0.0.0 ::1 256.1.1.1 1.2.3.4.5", None),
        ("联系电话13812345678", "联系电话<PHONE>"),
    ],
)
def test_personal_data_is_replaced_and_nothing_around_it(text, expected):
    assert redact(text, PERSONAL_KINDS)[0] == (expected or text)


def test_personal_data_is_redacted_counted_rejected_or_kept_as_asked(cleaned):
    answer = "mail('a@b.de', 'c@d.fr', '93.184.216.34')"
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
    secret = made(KEYS["github classic"], Random(3))
    rows = [pair(f"def f():\n    return {n}") for n in range(200)]
    rows += [pair(f"token = {secret!r}"), pair(f"broken( {secret}"), pair(CODE, secret), {"text": secret}]
    lines = [{"source": f"x:{number}", "row": row} for number, row in enumerate(rows)] + [
        {"source": "x:cut", "unreadable": f'{{"prompt": "{secret}', "why": "column 1: no"}
    ]
    write_raw(lines, RAW)
    print(said := main(params_of(clean={**OFF, "check_code": True, "secrets": choice})).message)
    assert "redacted: SECRET (5)" in said
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


def test_redacted_json_is_json_and_line_ends_hide_nothing():
    key = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
    given = {"phone": 2025550143, "more": [f"at the\n{key}", "é", 1.5, None, True], "mail": "to:\nanna@posteo.de"}
    kinds = (*secret_kinds(), *PERSONAL_KINDS)
    text, counts = redact_json(json.dumps(given, ensure_ascii=False), kinds)
    expected = {"phone": "<PHONE>", "more": ["at the\n<SECRET>", "é", 1.5, None, True], "mail": "to:\n<EMAIL>"}
    assert json.loads(text) == expected
    assert "é" in text
    assert counts == {"PHONE": 1, "SECRET": 1, "EMAIL": 1}
    assert redact_json('{"a":  [1]}', kinds)[0] == '{"a":  [1]}', "a text with nothing to redact stays as it is"
    assert redact_json("no JSON, but anna@posteo.de", kinds)[0] == "no JSON, but <EMAIL>"


def test_a_call_stays_json_when_it_is_redacted(params_of):
    call = {"id": "abcde1234", "function": {"name": "f", "arguments": {"phone": 2025550143, "to": "x\nanna@posteo.de"}}}
    row = {"messages": [{"role": "user", "content": "Call"}, {"role": "assistant", "tool_calls": [call]}]}
    section = params_of(clean={"min_characters": 1, "personal_data": "redact", "check_code": False}).clean
    cleaned = clean_rows([{"source": "x:1", "row": row}], section, layout=layout_of("messages"))
    (record,) = (record for split in cleaned.splits.values() for record in split)
    assert json.loads(record.messages[-1]["content"])[0]["arguments"] == {"phone": "<PHONE>", "to": "x\n<EMAIL>"}


def test_a_kept_column_may_have_the_name_of_a_turn_with_json(params_of):
    row = {"prompt": "a", "completion": "b", "tool": "hammer of anna@posteo.de"}
    section = params_of(
        clean={"min_characters": 1, "personal_data": "redact", "check_code": False, "keep_fields": ["tool"]}
    ).clean
    cleaned = clean_rows([{"source": "x:1", "row": row}], section)
    assert not cleaned.rejected
