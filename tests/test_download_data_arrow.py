"""Parquet and Arrow values become JSON values without loss, or the stage names the column and the row."""

import datetime
import decimal
import json
import uuid

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from stages._download_data.arrow_files import BATCH_ROWS
from stages._download_data.files import file_rows
from stages.runtime.errors import UserError

DAY = datetime.datetime(2024, 2, 29, 13, 5, 9)
PARIS = "Europe/Paris"
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def write(path, table: pyarrow.Table) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    new = pyarrow.ipc.new_file if path.stem == "file" else pyarrow.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table)


def rows_of(path) -> list:
    return [row["row"] for row in file_rows(path, path.name)]


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path)
    return str(caught.value)


def text_map(*pairs):
    return pyarrow.array([list(pairs)], pyarrow.map_(pyarrow.string(), pyarrow.float32()))


VALUES = [
    (pyarrow.array([b"Gr\xc3\xb6\xc3\x9fe"], pyarrow.binary()), "Größe"),
    (pyarrow.array([b"Gr\xc3\xb6\xc3\x9fe"], pyarrow.large_binary()), "Größe"),
    (pyarrow.array([b"abc"], pyarrow.binary(3)), "abc"),
    (pyarrow.array(["x"], pyarrow.large_string()), "x"),
    (pyarrow.array(["x"]).dictionary_encode(), "x"),
    (pyarrow.array([b"x"]).dictionary_encode(), "x"),
    (pyarrow.array([True]), True),
    (pyarrow.array([2**63 - 1]), 2**63 - 1),
    (pyarrow.array([0.1], pyarrow.float64()), 0.1),
    (pyarrow.array([0.1], pyarrow.float32()), 0.1),
    (pyarrow.array([np.float16(0.1)], pyarrow.float16()), 0.1),
    (pyarrow.array([float("nan")]), None),
    (pyarrow.array([[1.5, float("nan"), None]]), [1.5, None, None]),
    (pyarrow.array([decimal.Decimal("12.30")]), "12.30"),
    (pyarrow.array([decimal.Decimal(0)], pyarrow.decimal128(20, 10)), "0.0000000000"),
    (pyarrow.array([decimal.Decimal("1E+30")], pyarrow.decimal256(40, 0)), "1" + "0" * 30),
    (pyarrow.array([DAY.date()], pyarrow.date32()), "2024-02-29"),
    (pyarrow.array([DAY.date()], pyarrow.date64()), "2024-02-29"),
    (pyarrow.array([DAY], pyarrow.timestamp("s")), "2024-02-29T13:05:09"),
    (pyarrow.array([DAY.replace(microsecond=7000)], pyarrow.timestamp("ms")), "2024-02-29T13:05:09.007"),
    (pyarrow.array([1], pyarrow.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    (pyarrow.array([-1], pyarrow.timestamp("us")), "1969-12-31T23:59:59.999999"),
    (pyarrow.array([0], pyarrow.timestamp("s", PARIS)), "1970-01-01T00:00:00Z"),
    (pyarrow.array([DAY.time()], pyarrow.time32("s")), "13:05:09"),
    (pyarrow.array([DAY.replace(microsecond=7).time()], pyarrow.time64("us")), "13:05:09.000007"),
    (pyarrow.array([datetime.timedelta(days=1, milliseconds=5)], pyarrow.duration("ms")), "PT86400.005S"),
    (pyarrow.array([-1500], pyarrow.duration("ms")), "-PT1.500S"),
    (text_map(("a", 0.1), ("b", None)), {"a": 0.1, "b": None}),
    (pyarrow.array([[b"a", b"b"]]), ["a", "b"]),
    (pyarrow.array([[b"a", b"b"]], pyarrow.list_(pyarrow.binary(), 2)), ["a", "b"]),
    (pyarrow.array([{"when": DAY, "who": {"name": b"n"}}]), {"when": "2024-02-29T13:05:09", "who": {"name": "n"}}),
    (pyarrow.nulls(1), None),
]


@pytest.mark.parametrize(("array", "expected"), VALUES, ids=[str(array.type)[:40] for array, _ in VALUES])
@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow", "stream.arrow"])
def test_a_value_of_each_type_has_one_json_value(tmp_path, array, expected, name):
    column = pyarrow.concat_arrays([array, pyarrow.nulls(1, array.type), array])
    write(tmp_path / name, pyarrow.table({"value": column}))
    rows = rows_of(tmp_path / name)
    assert rows == [{"value": expected}, {"value": None}, {"value": expected}]
    assert [type(row["value"]) for row in rows] == [type(expected), type(None), type(expected)]
    json.dumps(rows, allow_nan=False)


def test_a_uuid_is_its_text(tmp_path):
    table = pyarrow.table({"id": pyarrow.array([UUID.bytes, None], pyarrow.uuid())})
    write(tmp_path / "file.arrow", table)
    assert rows_of(tmp_path / "file.arrow") == [{"id": str(UUID)}, {"id": None}]


@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow", "stream.arrow"])
def test_rows_of_nested_values_stay_in_place_over_many_batches(tmp_path, name):
    count = 2 * BATCH_ROWS + 500
    values = [
        {
            "turns": None if n % 7 == 0 else [{"content": f"é{n}-{k}".encode()} for k in range(n % 4)],
            "map": [("k", n)] if n % 3 else None,
        }
        for n in range(count)
    ]
    turns = pyarrow.list_(pyarrow.struct([("content", pyarrow.binary())]))
    schema = pyarrow.schema([("turns", turns), ("map", pyarrow.map_(pyarrow.string(), pyarrow.int64()))])
    write(tmp_path / name, pyarrow.Table.from_pylist(values, schema))
    expected = [
        {
            "turns": row["turns"] and [{"content": turn["content"].decode()} for turn in row["turns"]],
            "map": row["map"] and dict(row["map"]),
        }
        for row in values
    ]
    rows = list(file_rows(tmp_path / name, name))
    assert [row["row"] for row in rows] == expected
    assert [row["source"] for row in rows] == [f"{name}:{n}" for n in range(1, count + 1)]


BAD = [
    (pyarrow.array([b"ok", b"caf\xe9"]), "the column value holds bytes that are not UTF-8 text, such as 0xe9"),
    (pyarrow.array([1.0, float("-inf")]), "the column value cannot be read: the number is infinite"),
    (pyarrow.array([0, 2**40], pyarrow.timestamp("s")), "the column value cannot be read: "),
    (pyarrow.array([0, 2**31 - 1], pyarrow.date32()), "the column value cannot be read: "),
    (pyarrow.array([[{"a": b"ok"}], [{"a": b"ok"}, {"a": b"\xff"}]]), "the column value.a holds bytes"),
    (
        pyarrow.array([[("a", 1)], [("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "the column value has a key twice: a, a",
    ),
]


@pytest.mark.parametrize(("array", "message"), BAD, ids=[message[:50] for _, message in BAD])
@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow"])
@pytest.mark.parametrize("before", [0, 2 * BATCH_ROWS + 5])
def test_a_value_that_json_cannot_hold_stops_with_its_column_and_row(tmp_path, array, message, name, before):
    good, bad = array.slice(0, 1), array.slice(1, 1)
    write(tmp_path / name, pyarrow.table({"value": pyarrow.concat_arrays([good] * (before + 1) + [bad, good])}))
    assert f"{name}: row {before + 2}: {message}" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow"])
def test_text_that_is_not_utf8_stops_too(tmp_path, name):
    broken = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(np.array([0, 1, 2], np.int32).tobytes()), pyarrow.py_buffer(b"a\xff")
    )
    write(tmp_path / name, pyarrow.table({"value": broken}))
    assert "row 2" in (message := refusal(tmp_path / name))
    assert "value" in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pyarrow.array([{"a": 1}]), "names a column twice: value, value"),
        (
            pyarrow.StructArray.from_arrays([pyarrow.array([1])] * 2, ["a", "a"]),
            "names a column twice: value, value",
        ),
    ],
)
@pytest.mark.parametrize("name", ["rows.parquet", "file.arrow"])
def test_a_column_named_twice_is_refused(tmp_path, array, message, name):
    write(tmp_path / name, pyarrow.Table.from_arrays([array, array], ["value", "value"]))
    assert message in refusal(tmp_path / name)


def test_a_field_of_a_struct_named_twice_is_refused(tmp_path):
    array = pyarrow.StructArray.from_arrays([pyarrow.array([1])] * 2, ["a", "a"])
    write(tmp_path / "file.arrow", pyarrow.table({"value": pyarrow.array([[]], pyarrow.list_(array.type))}))
    assert "the column value names a field twice: a, a" in refusal(tmp_path / "file.arrow")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            pyarrow.UnionArray.from_sparse(pyarrow.array([0], pyarrow.int8()), [pyarrow.array([1])]),
            "the column value has the type sparse_union",
        ),
        (pyarrow.array([[(1, 2)]], pyarrow.map_(pyarrow.int64(), pyarrow.int64())), "keys of the type int64"),
        (pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval()), "has the type month_day_nano_interval"),
    ],
)
def test_a_type_that_json_cannot_hold_is_refused_before_the_first_row(tmp_path, array, message):
    write(tmp_path / "file.arrow", pyarrow.table({"value": array}))
    assert message in refusal(tmp_path / "file.arrow")


def test_a_damaged_page_stops_with_a_message(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": [f"a text with the number {n}" for n in range(5000)]})
    pyarrow.parquet.write_table(
        table, path, row_group_size=1000, use_dictionary=False, compression="none", write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"number 3500")] ^= 1
    path.write_bytes(content)
    message = refusal(path)
    assert f"{path} is damaged after row 3000: " in message
    assert "Copy or download it again" in message


@pytest.mark.parametrize("place", range(40, 4000, 97))
def test_damage_anywhere_in_a_file_never_ends_in_a_traceback(tmp_path, place):
    for name in ("rows.parquet", "file.arrow", "stream.arrow"):
        path = tmp_path / name
        columns = {
            "text": [f"text {n}" * (n % 5) for n in range(300)],
            "turns": [[{"a": n}] * (n % 3) for n in range(300)],
        }
        write(path, pyarrow.table(columns))
        content = bytearray(path.read_bytes())
        content[place : place + 8] = b"\xff" * 8
        path.write_bytes(content)
        try:
            rows_of(path)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.95])
def test_a_cut_arrow_file_says_so(tmp_path, name, share):
    path = tmp_path / name
    write(path, pyarrow.table({"text": [f"text {n}" for n in range(3000)]}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "Copy or download it again" in refusal(path)
