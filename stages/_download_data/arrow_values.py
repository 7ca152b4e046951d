"""Makes JSON values of Arrow arrays. What JSON has no value for becomes text in one stated way, or is refused."""

import math
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta

import numpy
import pyarrow
import pyarrow.compute
from pyarrow import types

DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # of a second's fraction
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NoJsonValueError(ValueError):
    """A value or a type that has no JSON value. The message begins with the name of the column."""


def check_type(column: str, kind: pyarrow.DataType) -> None:
    """Raises NoJsonValueError for a type that json_values() cannot read, and for a struct that names a field twice."""
    if types.is_struct(kind):
        names = [field.name for field in kind]
        if len(set(names)) < len(names):
            raise NoJsonValueError(f"{column} names a field twice: {', '.join(names)}")
        for field in kind:
            check_type(f"{column}.{field.name}", field.type)
    elif types.is_map(kind):
        if not is_text_type(kind.key_type):
            raise NoJsonValueError(f"{column} is a map with keys of the type {kind.key_type}, and JSON has text keys")
        check_type(column, kind.item_type)
    elif is_list(kind) or types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        check_type(column, kind.value_type)
    elif isinstance(kind, pyarrow.BaseExtensionType):
        check_type(column, kind.storage_type)
    elif not is_json_already(kind) and reader_of(kind) is None:
        raise NoJsonValueError(f"{column} has the type {kind}")


def is_list(kind: pyarrow.DataType) -> bool:
    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
    return any(check(kind) for check in (*checks, types.is_large_list_view))


def is_text_type(kind: pyarrow.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_binary(kind: pyarrow.DataType) -> bool:
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def is_json_already(kind: pyarrow.DataType) -> bool:
    """Tells whether pyarrow's own Python values are JSON values."""
    if types.is_struct(kind):
        return all(is_json_already(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind):
        return is_json_already(kind.value_type)
    return is_text_type(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)


def json_values(array: pyarrow.Array, column: str) -> list:
    """Returns the JSON value of each entry of an array.

    Texts, whole numbers, booleans, lists and structs stay what they are. Bytes are UTF-8 text. Maps are objects. Dates
    and times are ISO 8601 text, and decimals are text with all their digits. NaN is null.

    Raises:
        NoJsonValueError: an entry has none.
    """
    kind = array.type
    if is_json_already(kind) or isinstance(kind, pyarrow.BaseExtensionType) or reader_of(kind) is not None:
        return leaf_values(array, column)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        whole = array.dictionary_decode() if types.is_dictionary(kind) else pyarrow.compute.run_end_decode(array)
        return json_values(whole, column)
    if types.is_struct(kind):
        return struct_values(array, column)
    if is_list(kind) and not (types.is_list(kind) or types.is_large_list(kind)):
        return json_values(array.cast(pyarrow.large_list(kind.value_field)), column)
    ends = array.offsets.to_pylist()
    if types.is_map(kind):
        keys, items = (json_values(part[ends[0] : ends[-1]], column) for part in (array.keys, array.items))
        entries = entries_of(array, list(zip(keys, items, strict=True)))
        return [None if pairs is None else object_of(pairs, column) for pairs in entries]
    return entries_of(array, json_values(array.values[ends[0] : ends[-1]], column))


def leaf_values(array: pyarrow.Array, column: str) -> list:
    """Returns the JSON values of an array whose entries pyarrow gives as Python values of one type."""
    kind = array.type
    if isinstance(kind, pyarrow.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return [entry and str(uuid.UUID(bytes=entry)) for entry in array.storage.to_pylist()]
        return json_values(array.storage, column)
    try:
        if is_json_already(kind):
            return array.to_pylist()
        read, stored = reader_of(kind)
        return [None if entry is None else read(entry) for entry in array.cast(stored).to_pylist()]
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise NoJsonValueError(f"{column} holds bytes that are not UTF-8 text, such as 0x{byte:02x}") from None
    except (ValueError, OverflowError) as error:
        raise NoJsonValueError(f"{column} cannot be read: {error}") from None


def struct_values(array: pyarrow.StructArray, column: str) -> list[dict | None]:
    names = [field.name for field in array.type]
    fields = [json_values(part, f"{column}.{name}") for name, part in zip(names, array.flatten(), strict=True)]
    rows = zip(*fields, strict=True) if fields else [()] * len(array)
    valid = array.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if there else None for row, there in zip(rows, valid, strict=True)]


def entries_of(array: pyarrow.Array, values: list) -> list[list | None]:
    """Returns the list of each entry of a list or map array.

    Args:
        values: those of all entries. Where the array is a slice, they begin with its first entry.
    """
    offsets, valid = array.offsets.to_pylist(), array.is_valid().to_pylist()
    ends = [offset - offsets[0] for offset in offsets]
    return [
        values[start:end] if is_valid else None for start, end, is_valid in zip(ends, ends[1:], valid, strict=False)
    ]


def object_of(pairs: list[tuple[str, object]], column: str) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise NoJsonValueError(f"{column} has a key twice: {', '.join(key for key, _ in pairs)}")
    return result


def reader_of(kind: pyarrow.DataType) -> tuple[Callable[[object], object], pyarrow.DataType] | None:
    """Returns the function that makes a JSON value of one entry, and the type to which entries are cast for it.

    None: entries of this type are lists or the like, or have no JSON value.
    """
    return next((make(kind) for check, make in LEAVES if check(kind)), None)


def float_value(number: str | float) -> float | None:
    """Reads a number, or its text. The text of one with 32 bits is its shortest: 0.1, not 0.10000000149011612."""
    value = float(number)
    if math.isinf(value):
        raise ValueError("the number is infinite, and JSON has no such number")
    return None if math.isnan(value) else value


def iso_date(days: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=days)).isoformat()


def fraction(count: int, unit: str) -> str:
    return f".{count:0{DIGITS[unit]}d}" if count else ""


def iso_time(count: int, unit: str) -> str:
    seconds, rest = divmod(count, 10 ** DIGITS[unit])
    return time(seconds // 3600, seconds // 60 % 60, seconds % 60).isoformat() + fraction(rest, unit)


def iso_timestamp(count: int, unit: str, zone: str | None) -> str:
    """Returns a point in time, in UTC if it has a zone."""
    seconds, rest = divmod(count, 10 ** DIGITS[unit])
    moment = (EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None)
    return moment.isoformat() + fraction(rest, unit) + ("Z" if zone else "")


def iso_duration(count: int, unit: str) -> str:
    seconds, rest = divmod(abs(count), 10 ** DIGITS[unit])
    return f"{'-' if count < 0 else ''}PT{seconds}{fraction(rest, unit)}S"


# A check of the type, and what reader_of() returns for it.
LEAVES = [
    (is_binary, lambda kind: (lambda entry: entry.decode("utf-8"), kind)),
    (types.is_float16, lambda kind: (lambda entry: float_value(str(numpy.float16(entry))), pyarrow.float32())),
    (types.is_float32, lambda kind: (float_value, pyarrow.string())),
    (types.is_float64, lambda kind: (float_value, kind)),
    (types.is_decimal, lambda kind: (lambda entry: format(entry, "f"), kind)),
    (types.is_date32, lambda kind: (iso_date, pyarrow.int32())),
    (types.is_date64, lambda kind: (lambda entry: iso_date(entry // 86_400_000), pyarrow.int64())),
    (types.is_time32, lambda kind: (lambda entry: iso_time(entry, kind.unit), pyarrow.int32())),
    (types.is_time64, lambda kind: (lambda entry: iso_time(entry, kind.unit), pyarrow.int64())),
    (types.is_timestamp, lambda kind: (lambda entry: iso_timestamp(entry, kind.unit, kind.tz), pyarrow.int64())),
    (types.is_duration, lambda kind: (lambda entry: iso_duration(entry, kind.unit), pyarrow.int64())),
]
