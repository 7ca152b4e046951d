"""JSON and CSV files in the shapes that people bring: each is read right, or the stage says where and why not."""

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages._download_data.files import file_rows
from stages._download_data.text_files import TextSettings
from stages.runtime.errors import UserError

A, B, C = {"prompt": "p", "completion": "1"}, {"prompt": "q", "completion": "2"}, {"prompt": "r", "completion": "3"}
TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def rows_of(path, text: str, delimiter: str | None = None) -> list[dict]:
    path.write_text(text, encoding="utf-8", newline="")
    return list(file_rows(path, path.name, TextSettings(delimiter=delimiter)))


def pairs_of(path, text: str) -> list[tuple]:
    """The (place, row) of each row; of one that cannot be read, why."""
    rows = rows_of(path, text)
    return [(row["source"].removeprefix(f"{path.name}:"), row.get("row", row.get("why"))) for row in rows]


def refusal(path, text: str, delimiter: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, text, delimiter)
    return str(caught.value)


def dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{dump(A)}\n\n{dump(B)}", [("1", A), ("3", B)]),
        (f"{dump(A)}{dump(B)} {dump(C)}\n{dump(A)}\n", [("1#1", A), ("1#2", B), ("1#3", C), ("2", A)]),
        (f"{dump(A, 2)}\n{dump(B, 2)}\n{dump(C)}\n", [("1", A), ("5", B), ("9", C)]),
        (f"{dump(A, 0)}\r\n\r\n{dump({'messages': TURNS}, 4)}\r\n", [("1", A), ("6", {"messages": TURNS})]),
        (f"{dump(A, 2)}{dump(B, 2)} {dump(C)}\n", [("1", A), ("4", B), ("7", C)]),
        (dump([A, B]), [("1", A), ("2", B)]),
        (dump([A, B], 2), [("1", A), ("2", B)]),
    ],
    ids=["lines", "several on a line", "pretty", "mixed", "joined", "list", "pretty list"],
)
def test_objects_are_read_however_they_are_laid_out(tmp_path, name, text, expected):
    assert pairs_of(tmp_path / name, text) == expected


OBJECTS = st.lists(
    st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=9) | st.just(TURNS), max_size=3),
    min_size=1,
    max_size=6,
).filter(lambda rows: not any({"role", "from"} & row.keys() for row in rows))
LAYOUTS = {
    "lines": lambda rows: "\n".join(map(dump, rows)),
    "escaped less": lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "joined": lambda rows: "".join(map(dump, rows)),
    "joined with blanks": lambda rows: "  ".join(map(dump, rows)) + " \n",
    "pretty": lambda rows: "\n".join(dump(row, 2) for row in rows),
    "pretty and joined": lambda rows: "".join(dump(row, 1) for row in rows),
    "pretty without blanks": lambda rows: "\n\n".join(dump(row, 0) for row in rows),
    "list": dump,
    "pretty list": lambda rows: dump(rows, 4),
    "object": lambda rows: dump({"data": rows}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@given(rows=OBJECTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_in_any_layout_are_the_same_rows(tmp_path, name, layout, rows):
    text = LAYOUTS[layout]([*rows, A])
    a_line_is_a_row = layout == "object" and name == "rows.jsonl"
    expected = [{"data": [*rows, A]}] if a_line_is_a_row else [*rows, A]
    read = rows_of(tmp_path / name, text.encode("utf-8", "replace").decode())
    assert [row.get("row") for row in read] == json.loads(dump(expected).encode("utf-8", "replace"))
    assert len({row["source"] for row in read}) == len(read)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{dump([A, B])}\n{dump([C])}\n", [("1#1", A), ("1#2", B), ("2", C)]),
        (f"{dump(TURNS)}\n{dump(TURNS)}\n", [("1", TURNS), ("2", TURNS)]),
        (dump(TURNS), [("1", TURNS)]),
        (f"{dump(TURNS, 2)}\n{dump(TURNS, 2)}\n", [("1", TURNS), ("11", TURNS)]),
        ('["q", "a"]\n[]\n', [("1", ["q", "a"]), ("2", [])]),
    ],
    ids=["batches of rows", "conversations", "one conversation", "pretty conversations", "other lists"],
)
def test_a_list_of_rows_is_taken_apart_and_any_other_list_is_one_row(tmp_path, text, expected):
    assert pairs_of(tmp_path / "rows.jsonl", text) == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "x",}', "column 16: Expecting property name"),
        ("{'prompt': 1}", "column 2: Expecting property name"),
        ('{"prompt": "cut o', "the line ends inside a string"),
        ('{"prompt": "x", "completion"', "column 29: Expecting ':' delimiter"),
        ('{"prompt": "x" "completion": 1}', "column 16: Expecting ',' delimiter"),
        (dump(A) + ",", "column 35: Extra data"),
        (dump(A) + "{oops}", "column 35: Extra data"),
        (dump(A) + '{"prompt": "cut o', "column 35: Extra data"),
        ('{"a": 1, "a": 2}', "the object with the keys a, a has one of them twice"),
        ('{"a": Infinity}', "Infinity is not a JSON value"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ("[", "column 2: Expecting value"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_that_does_not_parse_has_its_reason_and_the_others_are_read(tmp_path, line, why, end):
    after = [] if not end else [("3", B), ("5", C)]
    text = f"{dump(A)}{end or chr(10)}{line}{end}" + (f"{dump(B)}{end}{end}{dump(C)}" if end else "")
    (_, first), (place, reason), *others = pairs_of(tmp_path / "rows.jsonl", text)
    assert (first, place, others) == (A, "2", after)
    assert reason.startswith(why)


def test_many_cut_lines_do_not_take_the_lines_after_them(tmp_path):
    text = f'{{"prompt": "x",\n{dump(A)}\n' * 3000
    pairs = pairs_of(tmp_path / "rows.jsonl", text)
    assert [row for _, row in pairs[1::2]] == [A] * 3000
    assert all(place == str(number) for number, (place, _) in enumerate(pairs, 1))


def test_an_error_inside_a_pretty_object_is_named_where_it_is(tmp_path):
    text = f'{dump(A, 2)}\n{{\n  "prompt": "x",\n  "completion" 1\n}}\n{dump(B)}\n'
    pairs = pairs_of(tmp_path / "rows.jsonl", text)
    assert pairs[0] == ("1", A)
    assert pairs[1][0] == "5"
    assert pairs[1][1] == "the value that begins here does not parse: line 7, column 16: Expecting ':' delimiter"
    assert pairs[-1] == ("9", B)


def test_what_begins_in_the_middle_of_a_line_keeps_its_line_and_column(tmp_path):
    pairs = pairs_of(tmp_path / "rows.jsonl", f'{{}} {{\n"a": 1\n}}   {{oops}}\n{dump(A)}\n')
    assert pairs == [
        ("1#1", {}),
        ("1", {"a": 1}),
        ("3", "column 6: Expecting property name enclosed in double quotes"),
        ("4", A),
    ]


def test_nan_is_a_missing_value(tmp_path):
    assert pairs_of(tmp_path / "rows.jsonl", '{"a": NaN, "b": [NaN, 1.5]}') == [("1", {"a": None, "b": [None, 1.5]})]


@pytest.mark.parametrize(
    "value",
    [
        {"data": [A, B]},
        {"version": "1.1", "Data": [A, B]},
        {"anything": [A, B]},
        {"meta": {"count": 2}, "examples": [A, B], "tags": ["x"]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_may_hold_the_list_of_rows(tmp_path, value, indent):
    assert pairs_of(tmp_path / "rows.json", dump(value, indent)) == [("1", A), ("2", B)]


@pytest.mark.parametrize(
    "value",
    [
        A,
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "h"}]},
        {"messages": TURNS, "tags": ["x", "y"]},
        {"question": "q", "answer": "a", "sources": [{"url": "u"}]},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_that_is_a_row_is_one_row(tmp_path, value, indent):
    assert pairs_of(tmp_path / "row.json", dump(value, indent)) == [("1", value)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": [A], "test": [B]}, "holds several lists of rows: train, test. Save the one"),
        ({"prompt": ["p", "q"], "completion": ["1", "2"]}, "holds columns, not rows: prompt, completion. Save it as"),
        ({"prompt": {"0": "p", "1": "q"}, "completion": {"0": "1", "1": "2"}}, "holds columns, not rows"),
        ("text", "holds a JSON str, not rows"),
    ],
)
def test_an_object_that_is_neither_says_what_it_is(tmp_path, value, message):
    assert message in refusal(tmp_path / "rows.json", dump(value))


def test_a_broken_object_in_a_json_file_is_named_by_line_and_column(tmp_path):
    message = refusal(tmp_path / "rows.json", '{"version": 1,\n "data": [{"a": 1},\n {"a" 2}]}')
    assert "rows.json is not valid JSON: Expecting ':' delimiter (line 3, column 7) in row 2" in message


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("rows.json", "[{}]"),
        ("rows.jsonl", "[{}]"),
        ("rows.json", '{{"data": [{}]}}'),
        ("rows.json", "{}"),
        ("rows.jsonl", "{}"),
    ],
)
def test_long_files_need_little_memory(tmp_path, name, wrap):
    joined = ("\n" if wrap == "{}" else ", ").join([dump({"a": "x" * 1000})] * 20_000)
    (tmp_path / name).write_text(wrap.format(joined))
    tracemalloc.start()
    assert sum(1 for _ in file_rows(tmp_path / name, name)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 << 20  # the file has 20 MB


PROSE = "Twenty words, more or less"


@pytest.mark.parametrize(("name", "used"), [("rows.csv", ","), ("rows.tsv", "\t")])
@pytest.mark.parametrize("delimiter", [";", "\t", ",", "|"])
def test_another_delimiter_is_named_with_the_key_that_reads_it(tmp_path, name, used, delimiter):
    text = f'prompt{delimiter}completion\n"{PROSE}"{delimiter}1\n'
    if delimiter != used:
        assert f"set data.delimiter: {json.dumps(delimiter)}" in refusal(tmp_path / name, text)
    rows = rows_of(tmp_path / name, text, delimiter)
    assert [row["row"] for row in rows] == [{"prompt": PROSE, "completion": "1"}]


def test_a_named_delimiter_that_the_file_does_not_have_stops_too(tmp_path):
    message = refusal(tmp_path / "rows.csv", "prompt,completion\np,1\n", ";")
    assert "with a semicolon as delimiter, the first line names only one column: 'prompt,completion'" in message


def test_a_first_line_of_data_is_shown_without_its_private_data(tmp_path):
    message = refusal(tmp_path / "rows.csv", "anna@posteo.de;ghp_16C7e42F292c6912E7710c838347Ae178B4a\n")
    assert "names only one column: '<EMAIL>;<SECRET>'" in message
    message = refusal(tmp_path / "rows.csv", "anna@posteo.de,1,1\n")
    assert "names a column twice in its first line: <EMAIL>, 1, 1" in message


@pytest.mark.parametrize("header", ["text", '"text; or more"', '"a, b"'])
def test_a_file_of_one_column_is_no_wrong_delimiter(tmp_path, header):
    assert [list(row["row"].values()) for row in rows_of(tmp_path / "rows.csv", f"{header}\na\nb\n")] == [["a"], ["b"]]


def test_the_line_in_which_excel_names_the_delimiter_is_used(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", "sep=;\r\nprompt;completion\r\np;1\r\n")
    assert rows == [{"source": "rows.csv:3", "row": {"prompt": "p", "completion": "1"}}]


def test_blanks_after_every_delimiter_are_no_part_of_the_fields(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", 'prompt, completion\np, "1, and 2"\nq, 3\n')
    assert [row["row"]["completion"] for row in rows] == ["1, and 2", "3"]


def test_blanks_in_the_fields_of_other_files_stay(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", 'prompt,completion\n p, 1\n" q"," 2"\n')
    assert [list(row["row"].values()) for row in rows] == [[" p", " 1"], [" q", " 2"]]


LINES = "".join(f"p{n},answer {n}\n" for n in range(30))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('"p,never closed\n', "line 32: a quote in this row is never closed"),
        ('"p,closed by the next row\n"p","a"\n', "line 33: after a closing quote comes neither"),
        ('"He said "hi" to me",a\n', "line 32: after a closing quote comes neither"),
        ('"He said \\"hi\\" to me",a\n', "line 32: after a closing quote comes neither"),
    ],
)
def test_a_wrong_quote_stops_with_its_line(tmp_path, broken, message):
    text = refusal(tmp_path / "rows.csv", f"prompt,completion\n{LINES}{broken}{LINES}")
    assert message in text
    assert 'A quote inside a quoted field is written twice ("")' in text


@pytest.mark.parametrize("before", [0, 3, 30])
@pytest.mark.parametrize("swallowed", [3, 8, 300])
def test_a_quote_that_swallows_rows_up_to_a_later_quote_is_noticed(tmp_path, before, swallowed):
    inside = "".join(f"s{n},answer {n}\n" for n in range(swallowed))
    rows = LINES[: LINES.index(f"p{before},")] if before < 30 else LINES
    text = f'prompt,completion\n{rows}"a screen,large\n{inside}of 5",b\n{LINES}'
    message = refusal(tmp_path / "rows.csv", text)
    assert (
        f"line {before + 2}: the row that begins here has {swallowed + 2} lines, and no other row has more than 1"
        in (message)
    )


@pytest.mark.parametrize(
    "answers",
    [
        ["one line\n\nthen, a list:\n- a\n- b\n- c, d\n- e"] * 3 + ["short"] * 30,
        ["x = f(1, 2)\ny = 3\nprint(x)\nprint(y, x)\n" * 20] + ["short"] * 30,
        ["id,name\n1,a\n2,b\n3,c\n4,d"] * 10,
        [f"{n},\n" * (n + 3) for n in range(10)],
    ],
    ids=["prose", "one long program", "tables", "poems"],
)
def test_long_fields_are_no_swallowed_rows(tmp_path, answers):
    quoted = "".join(f'p,"{answer}"\n' for answer in answers)
    rows = rows_of(tmp_path / "rows.csv", f"prompt,completion\n{quoted}")
    assert [row["row"]["completion"] for row in rows] == answers
