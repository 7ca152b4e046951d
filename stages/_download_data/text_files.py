"""Opens data files as text and is strict about it. A byte that does not fit the encoding stops the stage."""

import codecs
import gzip
import io
import re
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from stages.runtime.errors import UserError
from stages.runtime.shown import without_private_data

# The longer marks come first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD_BYTES, CHUNK, SAMPLE = 1 << 12, 1 << 20, 1 << 16
MULTI_BYTE_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
ASCII = bytes(range(128))
# Encodings of other programs, among which charset-normalizer chooses. cp1252 holds all characters of Latin-1.
GUESSED = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "mac_roman", "cp850"]
GUESSED += ["cp932", "euc_jp", "gb18030", "big5", "cp949"]
# Between two letters something that is neither ASCII nor a letter, a mark, a dash, an apostrophe or East Asian.
SYMBOL_IN_WORD = re.compile(
    r"(?<=[^\W\d_])[^\w\x00-\x7f\u0300-\u036f\u3000-\u303f\uff00-\uffef’‑–—…·](?=[^\W\d_])|(?<=[^\W\d_])[²³¹ªº¼½¾](?=[^\W\d_])"
)
SHOWN_READINGS, SHOWN_BEFORE, SHOWN_AFTER = 3, 30, 30
# Stands for a byte that does not fit. No decoder gives it for bytes that do.
BAD = "\udcff"

codecs.register_error("mark_bad_bytes", lambda error: (BAD, error.end))


class TextSettings(NamedTuple):
    """How text files are read: the keys data.encoding and data.delimiter."""

    encoding: str = "utf-8"
    delimiter: str | None = None


def open_binary(path: Path) -> BinaryIO:
    """Opens a file and decompresses it if its name ends in .gz or .zst."""
    if path.suffix.lower() == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb")


def open_text(path: Path, reading: TextSettings, newline: str | None = None) -> TextIO:
    """Opens a file as text.

    Reading from it raises UnicodeDecodeError, which explain_bad_byte() explains.

    Raises:
        UserError: the file is clearly in another encoding than data.encoding.
    """
    return io.TextIOWrapper(open_binary(path), encoding=encoding_of(path, reading.encoding), newline=newline)


def encoding_of(path: Path, encoding: str) -> str:
    """Returns the encoding that the file's byte order mark names, or else data.encoding.

    Raises:
        UserError: the bytes fit data.encoding, but clearly mean another one.
    """
    with open_binary(path) as file:
        head = file.read(HEAD_BYTES)
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if marked is not None:
        return marked
    name = codecs.lookup(encoding).name
    if name != "utf-8":
        check_not_utf8(path, name)
    elif wide := utf16_without_mark(head):
        raise UserError(f"{path} is not UTF-8: every second byte is zero, as in {wide}. Set data.encoding: {wide}")
    return name


def utf16_without_mark(sample: bytes) -> str | None:
    """Returns utf-16-le or utf-16-be if every second byte of the sample is mostly zero, and the others are not."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if not sample or max(even, odd) * 4 < len(sample) or min(even, odd) * 8 > len(sample):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def check_not_utf8(path: Path, encoding: str) -> None:
    """Checks that a file to be read in another encoding is not UTF-8 or cp1252, which would be read as wrong text.

    Raises:
        UserError: it is.
    """
    valid = bad = 0
    with open_binary(path) as file:
        for chunk in iter(partial(file.read, CHUNK), b""):
            if chunk.isascii():
                continue
            if encoding.startswith("iso8859") and re.search(rb"[\x80-\x9f]", chunk):
                raise UserError(
                    f"data.encoding: {path} has bytes that are no characters in {encoding}. It may be cp1252, which "
                    "has the others at the same places: set data.encoding: cp1252"
                )
            found = MULTI_BYTE_UTF8.findall(chunk)
            valid += len(found)
            bad += len(chunk.translate(None, ASCII)) - sum(map(len, found))
    one_byte = len(bytes(range(128, 256)).decode(encoding, "replace")) == 128
    # In encodings of one byte a character, UTF-8's pairs and triples of bytes are rare. In others, such as cp932, they
    # are not.
    if valid * 4 > bad if one_byte else valid and not bad:
        raise UserError(
            f"data.encoding: {path} looks like UTF-8, not {encoding}. Set data.encoding: utf-8, or put files of "
            "different encodings into different folders"
        )


def explain_bad_byte(path: Path, reading: TextSettings) -> UserError:
    """Returns the error that names the first byte which does not fit, its line, and the key to set."""
    encoding = encoding_of(path, reading.encoding)
    is_utf8 = encoding.startswith("utf-8")
    number, before, after = around_bad_byte(path, encoding, "surrogateescape" if is_utf8 else "mark_bad_bytes")
    where = f"{path}, line {number}"
    if not is_utf8:
        return UserError(
            f"{where}: after {shown_before(before)!r} come bytes that are not {encoding}. Correct data.encoding or "
            "the file"
        )
    sample = after.encode("utf-8", "surrogateescape")
    problem = f"{where}: the byte 0x{sample[0]:02x} after {shown_before(before)!r} is not UTF-8"
    escaped = sum("\udc80" <= char <= "\udcff" for char in after)
    if escaped == len(after) < 4:
        problem += ", and the file ends there"
    if len(MULTI_BYTE_UTF8.findall((before + after).encode("utf-8", "surrogateescape"))) >= escaped:
        return UserError(
            f"{problem}. The text around it is UTF-8, so the file has a damaged character or parts in two encodings. "
            "Correct the line"
        )
    return UserError(f"{problem}. {advice(before, after)}")


def around_bad_byte(path: Path, encoding: str, errors: str) -> tuple[int, str, str]:
    """Returns the line of the first bad byte, up to SAMPLE characters of that line before it, and as many from it on.

    Bad bytes are lone surrogates in the texts.
    """
    number, line_start = 1, ""
    with io.TextIOWrapper(open_binary(path), encoding=encoding, errors=errors) as file:
        for piece in iter(partial(file.readline, CHUNK), ""):
            if bad := re.search("[\udc80-\udcff]", piece):
                before = (line_start + piece[: bad.start()])[-SAMPLE:]
                after = piece[bad.start() :][:SAMPLE]
                return number, before, after + file.read(SAMPLE - len(after))
            whole = piece.endswith("\n")
            number, line_start = number + whole, "" if whole else (line_start + piece)[-SAMPLE:]
    return number, line_start, BAD


def shown_before(text: str) -> str:
    """Returns the end of a text, redacted before it is cut, since half a key is not found."""
    return without_private_data(text)[-SHOWN_BEFORE:]


def reading_of(before: str, after: str, encoding: str) -> str:
    """Returns what a line reads around its bad byte in another encoding. Private data is redacted before it is cut."""
    left, right = (text.encode("utf-8", "surrogateescape") for text in (before, re.split("[\r\n]", after)[0]))
    short = re.split("[\r\n]", after[:SHOWN_AFTER])[0].encode("utf-8", "surrogateescape")
    whole = right.decode(encoding, "ignore")
    redacted = without_private_data(whole)
    shown = short.decode(encoding, "ignore") if redacted == whole else redacted[:SHOWN_AFTER]
    return shown_before(left.decode(encoding, "ignore")) + shown


def advice(before: str, after: str) -> str:
    """Says what the bytes look like, how a line reads then, and which key to set."""
    sample = (before + after).encode("utf-8", "surrogateescape")
    if wide := utf16_without_mark(sample):
        return f"It looks like {wide}: set data.encoding: {wide}"
    found = guesses(sample)
    if not found:
        return "Set data.encoding to the file's encoding, or save the file as UTF-8"
    readings: dict[str, str] = {}  # of encodings that read the same, the first one
    for name in found:
        readings.setdefault(reading_of(before, after, name), name)
    first, *others = [(name, text) for text, name in readings.items()][:SHOWN_READINGS]
    text = f"It looks like {first[0]}, which reads {first[1]!r}. If that is right, set data.encoding: {first[0]}"
    if others:
        text += "; else " + " or ".join(f"{name}, which reads {words!r}" for name, words in others)
    return f"{text}. Or save the file as UTF-8"


def guesses(sample: bytes) -> list[str]:
    """Returns the encodings that the sample may have, the likeliest first.

    Where charset-normalizer finds several, cp1252 comes first, because most such files have it. One that puts a symbol
    into a word comes last.
    """
    from charset_normalizer import from_bytes

    found = from_bytes(sample, cp_isolation=GUESSED)
    best = found.best()
    if best is None:
        return []
    names = list(dict.fromkeys([*(match.encoding for match in found), *best.could_be_from_charset]))
    symbols = {name: bool(SYMBOL_IN_WORD.search(sample.decode(name, "replace"))) for name in names}
    return sorted(names, key=lambda name: (symbols[name], name != "cp1252", names.index(name)))
