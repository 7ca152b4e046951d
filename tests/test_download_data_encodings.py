"""A text file is read in its own encoding, or the stage names the line, the encoding and the key."""

import codecs
import gzip
import json

import pytest
from pydantic import ValidationError

from stages._download_data import text_files
from stages._download_data.files import file_rows
from stages._download_data.text_files import TextSettings
from stages.runtime.errors import UserError

GERMAN = "Wie heißt die Straße? Sie heißt Königsallee – „schön“."


def rows_of(path, content: bytes, encoding="utf-8") -> list:
    path.write_bytes(content)
    return [row["row"] for row in file_rows(path, path.name, TextSettings(encoding))]


def refusal(path, content: bytes, encoding="utf-8") -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, content, encoding)
    return str(caught.value)


def jsonl(*texts: str) -> str:
    return "".join(json.dumps({"a": text}, ensure_ascii=False) + "\n" for text in texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", jsonl(GERMAN)),
        ("rows.json", json.dumps([{"a": GERMAN}], ensure_ascii=False)),
        ("rows.csv", f'a\r\n"{GERMAN}"\r\n'),
        ("rows.csv.gz", f'a\r\n"{GERMAN}"\r\n'),
    ],
)
@pytest.mark.parametrize(
    "marked", ["utf-8-sig", "utf-16", "utf-32", pytest.param("utf-16-be", id="utf-16-be with a mark")]
)
@pytest.mark.parametrize("key", ["utf-8", "cp1252"])
def test_a_byte_order_mark_decides_whatever_the_key_says(tmp_path, name, text, marked, key):
    content = text.encode(marked) if marked != "utf-16-be" else codecs.BOM_UTF16_BE + text.encode(marked)
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert rows_of(tmp_path / name, content, key) == [{"a": GERMAN}]


LANGUAGES = {
    "cp1252": "Où est le café ? Il est à côté de l’église. ¿Qué es? Es una señal.",
    "cp1250": "Jak nazywa się ta ulica? Nazywa się Złota i jest piękna, żółta.",
    "cp1251": "Как называется улица? Она называется Невский проспект.",
    "cp1253": "Πώς λέγεται ο δρόμος; Λέγεται οδός Αθηνάς.",
    "koi8_r": "Как называется улица? Она называется Невский проспект.",
    "mac_roman": "Où est le café ? Il est à côté de l’église.",
    "cp932": "通りの名前は何ですか。それは銀座通りです。とても有名です。",
    "gb18030": "这条街叫什么名字？它叫做南京路，非常有名。",
    "big5": "這條街叫什麼名字？它叫做中山北路，非常有名。",
    "cp949": "이 거리의 이름은 무엇입니까? 세종대로라고 합니다. 아주 유명합니다.",
}


@pytest.mark.parametrize(("encoding", "text"), LANGUAGES.items())
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".jsonl.gz"])
def test_a_byte_that_is_not_utf8_stops_with_the_line_and_the_key_that_reads_it(tmp_path, encoding, text, ending):
    lines = jsonl("plain", "plain", text) if "jsonl" in ending else f'a\nplain\n"{text}"\n'
    content = lines.encode(encoding)
    content = gzip.compress(content) if ending.endswith(".gz") else content
    path = tmp_path / f"rows{ending}"
    message = refusal(path, content)
    assert f"{path}, line 3: the byte 0x" in message
    assert f"It looks like {encoding}, which reads " in message
    assert f"set data.encoding: {encoding}" in message
    assert [row["a"] for row in rows_of(path, content, encoding)][-1] == text, "with that key the text is right"


def test_the_message_shows_how_the_line_would_read(tmp_path):
    message = refusal(tmp_path / "rows.csv", f"a\n{GERMAN}\n".encode("cp1252"))
    assert "line 2: the byte 0xdf after 'Wie hei' is not UTF-8" in message
    assert "cp1252, which reads 'Wie heißt die Straße? Sie heißt König" in message


def test_the_message_shows_no_private_data_of_the_line(tmp_path):
    key, mail = "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "anna.schmidt@posteo.de"
    text = refusal(tmp_path / "rows.jsonl", f'{{"a": "{key} straße {mail}"}}'.encode("cp1252"))
    assert key[-20:] not in text
    assert mail not in text
    assert '\'{"a": "<SECRET> straße <EMAIL>"}\'' in text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.jsonl.gz"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert rows_of(tmp_path / name, gzip.compress(b"") if name.endswith(".gz") else b"") == []


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (b"\n\n", 3),
        (b"\r\r\n\r", 4),
        (b'{"a": 1}\n' * 5000, 5001),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}\n', 2),
    ],
)
def test_the_line_is_right_after_any_line_ends_and_long_lines(tmp_path, before, line):
    assert f"rows.jsonl, line {line}: the byte 0xe9" in refusal(tmp_path / "rows.jsonl", before + b'{"a": "caf\xe9"}\n')


def test_one_damaged_character_in_utf8_is_named_as_that(tmp_path):
    content = jsonl(GERMAN, GERMAN).encode()
    place = content.index("ö".encode()) + 1
    message = refusal(tmp_path / "rows.jsonl", content[:place] + b"x" + content[place + 1 :])
    assert "line 1: the byte 0xc3" in message
    assert "The text around it is UTF-8" in message
    assert "data.encoding" not in message, "no encoding reads this file"


def test_a_file_that_ends_inside_a_character_says_so(tmp_path):
    content = f"a\n{GERMAN}é".encode()[:-1]
    assert "line 2: the byte 0xc3" in (message := refusal(tmp_path / "rows.csv", content))
    assert "the file ends there" in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_utf16_without_a_mark_is_named(tmp_path, encoding, name):
    text = {"rows.jsonl": jsonl("plain"), "rows.csv": "a\nplain\n", "rows.json": '[{"a": "plain"}]'}[name]
    assert f"Set data.encoding: {encoding}" in refusal(tmp_path / name, text.encode(encoding))
    assert rows_of(tmp_path / name, text.encode(encoding), encoding) == [{"a": "plain"}]


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "shift_jis", "utf-16-le"])
def test_a_utf8_file_is_not_read_in_another_encoding(tmp_path, encoding):
    message = refusal(tmp_path / "rows.jsonl", jsonl(GERMAN).encode(), encoding)
    assert "looks like UTF-8, not " in message
    assert "Set data.encoding: utf-8" in message


@pytest.mark.parametrize(("encoding", "text"), LANGUAGES.items())
def test_no_file_of_another_encoding_is_taken_for_utf8(tmp_path, encoding, text):
    assert rows_of(tmp_path / "rows.jsonl", jsonl(text, "СССР»").encode(encoding, "ignore"), encoding)[0] == {"a": text}


def test_ascii_may_be_read_in_any_encoding(tmp_path):
    assert rows_of(tmp_path / "rows.jsonl", jsonl("plain").encode(), "cp1252") == [{"a": "plain"}]


def test_latin1_does_not_turn_the_quotes_of_cp1252_into_control_characters(tmp_path):
    assert "set data.encoding: cp1252" in refusal(tmp_path / "rows.jsonl", jsonl("it’s").encode("cp1252"), "latin-1")
    assert rows_of(tmp_path / "rows.jsonl", jsonl("é").encode("latin-1"), "latin-1") == [{"a": "é"}]


def test_a_byte_that_the_named_encoding_does_not_have_stops_too(tmp_path):
    content = jsonl("plain", "日本").encode("cp932") + b'{"a": "\x81\x20"}\n'
    message = refusal(tmp_path / "rows.jsonl", content, "cp932")
    assert 'rows.jsonl, line 3: after \'{"a": "\' come bytes that are not cp932' in message


def test_a_file_that_holds_replacement_characters_is_read_as_it_is(tmp_path):
    assert rows_of(tmp_path / "rows.jsonl", jsonl("a \ufffd b").encode()) == [{"a": "a \ufffd b"}]


def test_only_a_bounded_sample_is_held_for_the_message(tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(text_files, "guesses", lambda sample: lengths.append(len(sample)) or ["cp1252"])
    refusal(tmp_path / "rows.jsonl", b'{"a": "' + b"x" * (1 << 22) + b"\xe9" * (1 << 22) + b'"}\n')
    assert 0 < lengths[0] <= 2 * text_files.SAMPLE


@pytest.mark.parametrize("encoding", ["base64", "rot13", "unicode_escape", "nothing", "utf-7", "a\0b", ""])
def test_the_key_takes_only_encodings_of_text(params_of, encoding):
    with pytest.raises(ValidationError, match=r"data\.encoding\n.* an encoding of text that Python knows"):
        params_of(data={"encoding": encoding})
    assert params_of(data={"encoding": "Windows-1252"}).data.encoding == "Windows-1252"


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "a"])
def test_a_delimiter_is_one_character(params_of, delimiter):
    with pytest.raises(ValidationError, match=r"data\.delimiter\n.* one character"):
        params_of(data={"delimiter": delimiter})
