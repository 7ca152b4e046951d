"""Rows from the standard library, from files, and from a data set of the hub arrive complete and unchanged."""

import ast
import gzip
import io
import json
import random
import sysconfig
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import download_data
from stages._download_data import json_list
from stages._download_data.files import file_rows
from stages._download_data.stdlib import documented_functions, stdlib_rows
from stages.core.paths import RAW
from stages.runtime.errors import UserError

MODULE = '''
import functools

@functools.cache
@other(1)
def decorated(a: int, *, b="x") -> int:
    """Adds."""
    # a comment stays
    return a + len(b)

class Thing:
    @property
    def size(self):
        """How big.

        Very.
        """
        return 1

    async def grow(self):
        "Grows."
        def helper(n):
            """Helps."""
            return n
        return helper(2)

def undocumented():
    return 1

def only_documented():
    """Nothing else."""

def on_one_line(): "Says."; return 1

def with_indented_text():
    """Text."""
    return """
  kept
"""
'''
NAMES = ["decorated", "Thing.size", "Thing.grow", "Thing.grow.helper", "with_indented_text"]


@pytest.fixture
def extracted():
    """{name: (line, row)} of MODULE."""
    return {row["prompt"].split("`")[1]: (line, row) for line, row in documented_functions(MODULE, "example")}


def test_documented_functions_methods_and_nested_functions_are_found(extracted):
    assert list(extracted) == NAMES
    lines = MODULE.split("\n")
    assert all(
        lines[line - 1].split("def ")[1].startswith(name.split(".")[-1]) for name, (line, _) in extracted.items()
    )


def test_a_prompt_holds_name_module_signature_and_documentation(extracted):
    assert extracted["decorated"][1]["prompt"] == (
        "Write `decorated` of the Python module `example`.\n\ndef decorated(a: int, *, b='x') -> int:\n\nAdds."
    )
    assert "async def grow(self):" in extracted["Thing.grow"][1]["prompt"]
    assert extracted["Thing.size"][1]["prompt"].endswith("\n\nHow big.\n\nVery.")


def test_the_answer_is_the_source_without_its_docstring(extracted):
    assert extracted["decorated"][1]["completion"] == (
        '@functools.cache\n@other(1)\ndef decorated(a: int, *, b="x") -> int:\n    # a comment stays\n'
        "    return a + len(b)"
    )
    assert extracted["Thing.size"][1]["completion"] == "@property\ndef size(self):\n    return 1"
    assert '"""Helps."""' in extracted["Thing.grow"][1]["completion"], "only the function's own docstring goes"


def test_the_answer_parses_to_the_function_without_its_docstring():
    tree = {node.name: node for node in ast.walk(ast.parse(MODULE)) if hasattr(node, "body") and hasattr(node, "name")}
    rows = {row["prompt"].split("`")[1].split(".")[-1]: row for _, row in documented_functions(MODULE, "example")}
    for name, row in rows.items():
        node = tree[name]
        del node.body[0]
        assert ast.dump(ast.parse(row["completion"]).body[0]) == ast.dump(node)


def test_a_function_after_a_form_feed_is_found():
    text = 'x = 1\n\x0c\ndef f():\n    """Doc."""\n    return 1\n'
    assert [row["completion"] for _, row in documented_functions(text, "example")] == ["def f():\n    return 1"]


def test_the_order_of_the_rows_is_fixed_and_mixes_the_modules():
    root = Path(sysconfig.get_path("stdlib")) / "json"
    rows = list(stdlib_rows(root))
    assert rows == list(stdlib_rows(root))
    assert len({row["source"].split(":")[0] for row in rows[:8]}) > 1


@pytest.mark.slow
def test_the_standard_library_gives_more_rows_than_the_tiny_profile_takes(params_of):
    rows = list(stdlib_rows(Path(sysconfig.get_path("stdlib"))))
    assert len(rows) > params_of().data.limit
    assert len({row["source"] for row in rows}) == len(rows)
    assert not [row for row in rows if "/test/" in row["source"] or "site-packages" in row["source"]]
    for row in rows[:300]:
        function = ast.parse(row["row"]["completion"]).body[0]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        documentation = row["row"]["prompt"].split("\n\n", 2)[2]
        assert ast.get_docstring(function) != documentation


def rows_of(path: Path, content: str | bytes) -> list[dict]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(file_rows(path, path.name))


def test_json_lines_keep_their_line_numbers(tmp_path):
    rows = rows_of(tmp_path / "rows.jsonl", '{"a": "é"}\n\n{"a": 2}\r\n')
    assert rows == [{"source": "rows.jsonl:1", "row": {"a": "é"}}, {"source": "rows.jsonl:3", "row": {"a": 2}}]


@pytest.mark.parametrize("line", ['{"a": 1', "not json", "{'a': 1}", "[" * 100_000])
def test_a_line_that_is_not_json_is_kept_as_unreadable(tmp_path, line):
    rows = rows_of(tmp_path / "rows.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
    assert rows[1] == {"source": "rows.jsonl:2", "unreadable": line, "why": rows[1]["why"]}
    assert rows[2] == {"source": "rows.jsonl:3", "row": {"a": 3}}


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", '{"a": "1"}\n'), ("rows.json", '[{"a": "1"}]'), ("rows.csv", "a\n1\n"), ("ROWS.CSV", "a\n1\n")],
)
def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path, name, content):
    assert [row["row"] for row in rows_of(tmp_path / name, "\ufeff" + content)] == [{"a": "1"}]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES), st.sampled_from([None, 0, 3]), st.integers(1, 7))
def test_a_json_list_read_in_chunks_has_the_same_rows(rows, indent, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK_CHARACTERS", chunk)
        text = json_list.JsonText(io.StringIO(json.dumps(rows, indent=indent)))
        assert list(json_list.list_elements(text)) == rows


def read_in_chunks(text, chunk):
    """Returns the rows before the first error, and the error."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK_CHARACTERS", chunk)
        try:
            for row in json_list.list_elements(json_list.JsonText(io.StringIO(text))):
                rows.append(row)
        except ValueError as error:
            return rows, str(error)
    return rows, None


@given(
    st.lists(VALUES, min_size=1), st.integers(0, 10**6), st.sampled_from([*'{}[],:"\\0e.- x', ""]), st.integers(1, 7)
)
def test_a_broken_json_list_read_in_chunks_gives_the_same_error(rows, place, put, chunk):
    text = json.dumps(rows)
    place %= len(text)
    text = text[:place] + put + text[place + 1 :]
    assert read_in_chunks(text, chunk) == read_in_chunks(text, len(text) + 1)


def test_a_number_is_judged_when_all_of_it_is_read():
    """Without the last digit of its exponent, this one would be too large."""
    assert read_in_chunks(f"[1{'0' * 400}e-390]", 405) == ([1e10], None)
    assert read_in_chunks(f"[1{'0' * 400}e-39]", 405) == ([], f"the number 1{'0' * 29} is too large in row 1")


def test_nothing_is_read_after_a_broken_row():
    file = io.StringIO('[{"a": 1}, {"a" 2}, ' + ", ".join(json.dumps({"a": "x" * 1000}) for _ in range(8000)) + "]")
    with pytest.raises(ValueError, match=r"Expecting ':' delimiter \(line 1, column 17\) in row 2"):
        list(json_list.list_elements(json_list.JsonText(file)))
    assert file.tell() == json_list.CHUNK_CHARACTERS


def test_a_long_json_list_needs_little_memory(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"a": "x" * 1000}] * 30_000))
    tracemalloc.start()
    assert sum(1 for _ in file_rows(tmp_path / "rows.json", "rows.json")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20  # the file has 30 MB


def test_a_json_list_gives_its_rows(tmp_path):
    assert rows_of(tmp_path / "rows.json", '[{"a": 1}, "x"]') == [
        {"source": "rows.json:1", "row": {"a": 1}},
        {"source": "rows.json:2", "row": "x"},
    ]


def test_csv_rows_with_the_wrong_number_of_fields_are_kept_as_unreadable(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", 'a,b\n1,"two\nlines"\n3\n4,5,6\n7,8\n')
    why = "the row has {} fields, and the first line names 2 columns"
    assert rows == [
        {"source": "rows.csv:2", "row": {"a": "1", "b": "two\nlines"}},  # the line in which it begins
        {"source": "rows.csv:4", "unreadable": '["3"]', "why": why.format(1)},
        {"source": "rows.csv:5", "unreadable": '["4", "5", "6"]', "why": why.format(3)},
        {"source": "rows.csv:6", "row": {"a": "7", "b": "8"}},
    ]


def test_a_csv_field_may_be_longer_than_the_csv_modules_default_limit(tmp_path):
    assert len(rows_of(tmp_path / "rows.csv", f"a\n{'x' * 200_000}\n")[0]["row"]["a"]) == 200_000


def test_a_csv_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="names a column twice in its first line: a, b, a"):
        rows_of(tmp_path / "rows.csv", "a,b,a\n1,2,3\n")


def test_parquet_rows_keep_their_types_and_order(tmp_path):
    path = tmp_path / "rows.parquet"
    values = [{"a": index, "turns": [{"role": "user"}]} for index in range(2500)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=700)
    rows = list(file_rows(path, path.name))
    assert [row["row"] for row in rows] == values
    assert rows[-1]["source"] == "rows.parquet:2500"


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("packing", [(".gz", gzip.compress), (".zst", zstd), (".ZST", zstd)], ids=lambda p: p[0])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", '\ufeff{"a": "é"}\n\n{"a": 2}\n', [("rows.jsonl", 1, "é"), ("rows.jsonl", 3, 2)]),
        ("rows.json", '[{"a": "é"}]', [("rows.json", 1, "é")]),
        ("rows.csv", "a,b\né,1\n", [("rows.csv", 2, "é")]),
        ("rows.tsv", 'a\tb\n"é,\t\n"\t1\n', [("rows.tsv", 2, "é,\t\n")]),
    ],
)
def test_a_compressed_file_gives_the_rows_of_the_uncompressed_one(tmp_path, packing, name, content, expected):
    packed, pack = packing
    plain = rows_of(tmp_path / name, content)
    assert [(row["source"], row["row"]["a"]) for row in plain] == [(f"{n}:{line}", a) for n, line, a in expected]
    rows = rows_of(tmp_path / (name + packed), pack(content.encode()))
    assert [row["row"] for row in rows] == [row["row"] for row in plain]
    assert rows[0]["source"] == f"{name}{packed}:{expected[0][1]}"


@pytest.mark.parametrize(("packed", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_a_compressed_file_may_have_several_parts(tmp_path, packed, pack):
    rows = rows_of(tmp_path / f"rows.jsonl{packed}", pack(b'{"a": 1}\n') + pack(b'{"a": 2}\n'))
    assert [row["row"]["a"] for row in rows] == [1, 2]


LINES = json.dumps({"a": random.Random(0).randbytes(5000).hex()}).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.txt",
            "x",
            "rows.txt ends in none of .jsonl, .json, .csv, .tsv, each also with .gz or .zst, .parquet and .arrow",
        ),
        ("rows.parquet.gz", "x", "rows.parquet.gz ends in none of"),
        ("rows.jsonl.gz", "{}", "rows.jsonl.gz is damaged or cut short"),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:-40], "rows.jsonl.gz is damaged or cut short"),
        ("rows.json.gz", gzip.compress(LINES, mtime=0)[:30] + b"x" * 40, "rows.json.gz is damaged or cut short"),
        ("rows.jsonl.zst", "{}", "rows.jsonl.zst is damaged or cut short"),
        ("rows.jsonl.zst", zstd(LINES)[:-40], "rows.jsonl.zst is damaged or cut short"),
        ("rows.json", "1", "holds a JSON int, not rows"),
        ("rows.json", '[{"a": 1}, {"a": ]', r"is not valid JSON: Expecting value \(line 1, column 18\) in row 2"),
        (
            "rows.json",
            '[{"a": 1}\n {"a": 2}]',
            r"is not valid JSON: after row 1 comes '{', not .* \(line 2, column 2\)",
        ),
        ("rows.json", '[{"a": 1}', "is not valid JSON: after row 1 comes the end"),
        ("rows.json", '[{"a": 1},]', r"is not valid JSON: Expecting value \(line 1, column 11\) in row 2"),
        ("rows.json", '[{"a": 1}] []', "is not valid JSON: there is more after the list"),
        ("rows.json", '[{"a": 1, "a": 2}]', "is not valid JSON: the object with the keys a, a has one of them twice"),
        ("rows.json", "[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ("rows.parquet", b"PAR1PAR1", "is not a Parquet file"),
        ("rows.parquet", b"", "is not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path / name, content)


@pytest.fixture
def run(tmp_path, monkeypatch, params_of):
    """run(**changes to the section `data`) → the rows in data/raw."""
    monkeypatch.chdir(tmp_path)

    def build(**changes):
        download_data.main(params_of(data={"source": "file", "path": "rows.jsonl", "limit": None, **changes}))
        return [json.loads(line) for line in (RAW / "rows-00000.jsonl").read_text(encoding="utf-8").splitlines()]

    return build


ROW = {"prompt": "p", "completion": "c"}


def write_rows(*rows) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_limit_takes_the_first_rows(run):
    Path("rows.jsonl").write_text(f"{json.dumps(ROW)}\nbroken\n{json.dumps(ROW)}\n")
    assert run() == [
        {"source": "rows.jsonl:1", "row": ROW},
        {"source": "rows.jsonl:2", "unreadable": "broken", "why": "column 1: Expecting value"},
        {"source": "rows.jsonl:3", "row": ROW},
    ]
    assert len(run(limit=2)) == 2


def test_the_keys_for_encoding_and_delimiter_reach_the_reader(run):
    Path("rows.csv").write_bytes("prompt;completion\ncafé;1,5 €\n".encode("cp1252"))
    rows = run(path="rows.csv", encoding="cp1252", delimiter=";")
    assert rows == [{"source": "rows.csv:2", "row": {"prompt": "café", "completion": "1,5 €"}}]


def test_the_key_for_the_split_chooses_of_a_saved_data_set(run):
    import datasets

    splits = {name: datasets.Dataset.from_list([{**ROW, "prompt": name}]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk("saved")
    assert [row["row"]["prompt"] for row in run(path="saved", split="test")] == ["test"]


def test_data_raw_is_json_that_every_parser_reads(run):
    table = pyarrow.table({**{name: [value] * 2 for name, value in ROW.items()}, "score": [float("nan"), 1.5]})
    pyarrow.parquet.write_table(table, "rows.parquet")
    run(path="rows.parquet")
    text = (RAW / "rows-00000.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail)["row"] for line in text.splitlines()]
    assert rows == [{**ROW, "score": None}, {**ROW, "score": 1.5}]


def test_no_row_at_all_is_an_error_and_keeps_the_earlier_rows(run):
    write_rows(ROW)
    run()
    Path("rows.jsonl").write_text("\n")
    with pytest.raises(UserError, match="data.source: file gave no row at all"):
        run()
    assert json.loads((RAW / "rows-00000.jsonl").read_text()) == {"source": "rows.jsonl:1", "row": ROW}


def place(*files) -> None:
    """Writes files in data/, each with one row whose prompt is the file's name."""
    for name in files:
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**ROW, "prompt": name}) + "\n")


def test_a_folder_gives_the_rows_of_all_known_files_with_their_relative_paths(run):
    place("b.jsonl", "a/z.jsonl", "a/b/c.jsonl", "B.JSONL", "notes.txt", ".hidden.jsonl", ".git/x.jsonl")
    names = ["B.JSONL", "a/b/c.jsonl", "a/z.jsonl", "b.jsonl"]
    rows = run(path="data")
    assert [row["source"] for row in rows] == [f"{name}:1" for name in names]
    assert [row["row"]["prompt"] for row in rows] == names
    assert len(run(path="data", limit=3)) == 3


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["b.jsonl"]),
        ("**/*.jsonl", ["a/b/c.jsonl", "a/z.jsonl", "b.jsonl"]),
        ("a/*", ["a/z.jsonl"]),
        ("**/[bc].jsonl", ["a/b/c.jsonl", "b.jsonl"]),
    ],
)
def test_a_glob_chooses_files_of_the_folder(run, pattern, names):
    place("b.jsonl", "a/z.jsonl", "a/b/c.jsonl", "notes.txt")
    assert [row["source"] for row in run(path="data", files=pattern)] == [f"{name}:1" for name in names]


def test_a_file_of_unknown_kind_is_refused_if_the_glob_matches_it(run):
    place("b.jsonl", "notes.txt")
    assert "data/notes.txt ends in none of .jsonl," in refusal(run, path="data", files="*")


def test_a_path_without_rows_names_the_key_to_correct(run):
    Path("data").mkdir()
    Path("rows.jsonl").write_text(json.dumps(ROW))
    assert "data.path: there is no file or folder absent" in refusal(run, path="absent")
    assert "data.path: data holds no data. Put files there that end in .jsonl," in refusal(run, path="data")
    place("b.jsonl")
    assert "data.files: no file in data matches '*.csv'" in refusal(run, path="data", files="*.csv")
    assert "data.files: *.csv chooses files of a folder, but data.path rows.jsonl is a file" in refusal(
        run, files="*.csv"
    )


ALPACA = {"instruction": "i", "input": "j", "output": "o"}
SHAREGPT = {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}
MESSAGES = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ROW], "prompt-completion"),
        ([ALPACA, {"instruction": "i", "output": "o"}, {**ALPACA, "input": None}], "alpaca"),
        ([{**ALPACA, "prompt": "### Instruction: i"}], "alpaca"),
        ([SHAREGPT, {**SHAREGPT, "system": "s", "id": 1}], "sharegpt"),
        ([MESSAGES, {**MESSAGES, "prompt": "the first of them"}], "messages"),
        ([{**ROW, "messages": None, "conversations": None}], "prompt-completion"),
        ([{"prompt": "p", "completion": None}, ROW, {}, 7], "prompt-completion"),
        ([{"text": "t", "url": "u"}, {"text": "t"}], "text"),
        ([{**ALPACA, "text": "Below is an instruction"}, ALPACA], "alpaca"),
        ([{**MESSAGES, "text": "<s>[INST] u [/INST]"}], "messages"),
    ],
)
def test_the_format_is_recognised_from_the_columns_that_hold_values(run, rows, expected):
    write_rows(*rows)
    assert [row["row"] for row in run()] == rows, "every row is kept as it came"
    layout = json.loads((RAW / "format.json").read_text())
    assert (layout["format"], layout["python"], layout["tests"]) == (expected, False, False)


@pytest.mark.slow
def test_the_standard_library_needs_no_format(run):
    run(source="stdlib", limit=20)
    layout = json.loads((RAW / "format.json").read_text())
    assert (layout["format"], layout["python"]) == ("prompt-completion", True)


def refusal(run, **changes) -> str:
    with pytest.raises(UserError) as caught:
        run(**changes)
    assert not RAW.exists()
    return str(caught.value)


def test_an_unknown_format_shows_the_columns_and_the_nearest_formats(run):
    write_rows(
        {"asked": "q\x1b[31m\u2028", "output": "o" * 500}, *[{"texte": "é", "prompt": None}] * 3, {"prompt": "p"}
    )
    lines = refusal(run).splitlines()
    assert lines[0] == "data.format: the rows are of no known format."
    assert lines[1:5] == ["Columns with a value:", "  3 rows: texte", "  1 row: asked, output", "  1 row: prompt"]
    assert lines[5] == "Rows, for example:"
    assert lines[6].startswith(r'  rows.jsonl:1 {"asked": "q\u001b[31m\u2028", "output": "ooo')
    assert len(lines[6]) < 240
    assert lines[7:9] == ['  rows.jsonl:2 {"texte": "é", "prompt": null}', '  rows.jsonl:5 {"prompt": "p"}']
    assert lines[9:14] == [
        "Nearly fits:",
        "  prompt-completion: prompt is missing",
        "  alpaca: instruction is missing",
        "  question-answer: question or query is missing",
        "  input-output: input is missing",
    ]
    assert lines[14].startswith("Set data.format: columns and name the columns in data.columns, such as {user: ")
    assert "".join(lines).isprintable()


def test_at_most_three_rows_and_five_combinations_of_columns_are_shown(run):
    write_rows(*({f"column {n}": 1} for n in range(9)))
    text = refusal(run)
    assert text.count("rows.jsonl:") == 3
    assert text.count(" 1 row: ") == 5
    assert "4 more combinations of columns" in text
    assert "No format nearly fits." in text


def test_rows_without_columns_have_no_format(run):
    write_rows(1, "x")
    assert "  no row has columns\nNo format nearly fits." in refusal(run)


def test_a_format_that_changes_after_thousands_of_rows_is_noticed(run):
    write_rows(*[ROW] * 3000, ALPACA)
    text = refusal(run)
    assert "the rows are of different formats: prompt-completion (3,000 rows), alpaca (1 row)" in text
    assert 'rows.jsonl:3001 {"instruction": "i"' in text, "one row of each is shown"


def test_rows_with_only_a_text_among_others_are_another_format(run):
    """Else an Alpaca row without its output would make a ready-made prompt in `text` the format of all rows."""
    write_rows({**ALPACA, "text": "i j o"}, {**ALPACA, "text": "i j o", "output": None})
    assert "the rows are of different formats: alpaca (1 row), text (1 row)" in refusal(run)
    assert len(run(format="alpaca")) == 2


def test_rows_that_fit_two_formats_need_a_choice(run):
    write_rows({**MESSAGES, **ALPACA})
    assert "can be read as messages (1 row), alpaca (1 row). Set data.format to the one" in refusal(run)
    run(format="alpaca")
    assert json.loads((RAW / "format.json").read_text())["format"] == "alpaca"


def test_mixed_rows_are_taken_if_the_format_is_set_and_a_row_has_it(run):
    write_rows(ROW, ALPACA)
    assert "data.format: no row is messages." in refusal(run, format="messages")
    assert len(run(format="alpaca")) == 2


def test_any_columns_can_be_named(run):
    write_rows({"question": "q", "answer": "a", "rules": None}, {"question": "q", "answer": "a", "rules": "r"})
    columns = {"user": "question", "assistant": "answer", "system": "rules"}
    run(format="columns", columns=columns)
    layout = json.loads((RAW / "format.json").read_text())
    named = {"user": ["question"], "assistant": ["answer"], "system": ["rules"]}
    assert layout == {"columns": named, "format": "columns", "python": False, "tests": False, "ignored": []}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "question", "assistant": "anwser", "system": None}, "data.columns: no row has assistant: anwser"),
        ({"user": "question", "assistant": "answer", "system": "rules"}, "data.columns: no row has system: rules"),
        ({"user": "other", "assistant": "answer", "system": None}, "data.columns: no row has both other and answer"),
    ],
)
def test_a_named_column_that_no_row_has_is_refused(run, columns, message):
    write_rows({"question": "q", "answer": "a", "rules": None}, {"other": "x"})
    assert message in refusal(run, format="columns", columns=columns)


def test_the_format_is_written_the_same_each_time(run):
    write_rows(ALPACA)
    run()
    first = (RAW / "format.json").read_bytes()
    run()
    assert (RAW / "format.json").read_bytes() == first


def test_rows_go_to_shards_by_number_and_by_size(tmp_path, monkeypatch, params_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download_data, "SHARD_ROWS", 40)
    monkeypatch.setattr(download_data, "SHARD_CHARACTERS", 3000)
    lengths = [1] * 90 + [4000, 1, 1500, 1500, 1]
    rows = [ROW | {"note": "x" * length} for length in lengths]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    download_data.main(params_of(data={"source": "file", "path": "rows.jsonl", "limit": None}))
    shards = sorted(RAW.glob("rows-*.jsonl"))
    assert [path.name for path in shards] == [f"rows-{n:05}.jsonl" for n in range(len(shards))]
    read = [[json.loads(line) for line in path.read_text().splitlines()] for path in shards]
    assert [line["row"] for shard in read for line in shard] == rows
    assert [len(shard) for shard in read] == [len(read[0]), len(read[0]), 90 - 2 * len(read[0]) + 1, 3, 1]
