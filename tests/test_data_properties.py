"""Files of every kind with thousands of random and broken rows lose nothing in download_data and clean."""

import csv
import gzip
import io
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from stages import clean, download_data
from stages.core.paths import CLEAN, METRICS, read_json
from stages.core.records import SPLITS, content_id

LONE = json.loads(r'"\udc80"')
TEXTS = [
    "",
    " ",
    "x",
    "\x00",
    "NaN",
    LONE,
    "🦜\u2028",
    "â€™",
    "{",
    "[INST]</s>",
    "\r\n",
    "\ufeff",
    '"',
    "a,b\t",
    "9" * 400,
]
COLUMNS = ["prompt", "completion", "messages", "role", "content", "système", ""]


def anything(rng: random.Random, depth: int = 3) -> object:
    """A random JSON value, often of the wrong type."""
    if depth == 0 or rng.random() < 0.4:
        return rng.choice([None, True, -1, 1e308, 10**30, float("nan"), *TEXTS])
    if rng.random() < 0.4:
        return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {name: anything(rng, depth - 1) for name in rng.sample(COLUMNS, rng.randint(0, 4))}


def good(rng: random.Random) -> dict:
    digits = f"{rng.getrandbits(400):x}"  # so that few are near-duplicates
    return {
        "prompt": f"{rng.choice(TEXTS)} Say it. {rng.choice(TEXTS)}",
        "completion": f"'{digits}'  # {rng.choice(TEXTS)!a}",
    }


def row(rng: random.Random) -> object:
    kind = rng.random()
    if kind < 0.5:
        return good(rng)
    if kind < 0.6:
        return {"prompt": anything(rng), "completion": anything(rng)}
    if kind < 0.7:
        turns = [{"role": rng.choice(["user", "assistant", 1, None]), "content": anything(rng, 1)} for _ in range(2)]
        return {"prompt": turns, "completion": "x" * rng.randint(0, 30)}
    return anything(rng)


def line_of(value: object, rng: random.Random) -> bytes:
    """Returns the value as JSON, with escapes where it has a lone surrogate."""
    text = json.dumps(value, ensure_ascii=False)
    return (text if text.isprintable() and rng.random() < 0.5 else json.dumps(value)).encode()


def one_row(rng: random.Random) -> object:
    """Returns a row() that is no list of objects, which would be several rows."""
    value = row(rng)
    return [*value, None] if isinstance(value, list) else value


def jsonl(rng: random.Random, count: int) -> bytes:
    """Returns lines with a byte order mark, all kinds of line ends, and blank lines.

    Some lines have a key twice or are not JSON. The last one is cut.
    """
    lines = [line_of(one_row(rng), rng) for _ in range(count)]
    for place in rng.sample(range(count), count // 10):
        whole = lines[place]
        lines[place] = rng.choice(
            [
                whole[: len(whole) // 2].decode("utf-8", "ignore").encode() or b"{",
                b"\x00" * 5,
                b'{"prompt": "first", "prompt": "second", "completion": "def f():\\n    return 12345678"}',
                whole.replace(b"a", b"\x01"),
                b"[" * 5000,
            ]
        )
    # A lone \r ends a line too, as Python reads text.
    ends = [rng.choice([b"\n", b"\r\n", b"\n\n", b"\r\n \r\n", b"\r"]) for _ in lines]
    ends[-1] = b""
    lines[-1] = b'{"prompt": "cut he'
    return b"\xef\xbb\xbf" + b"".join(line + end for line, end in zip(lines, ends, strict=True))


def standard(text: str) -> str:
    """Returns the text without what other programs do not write: lone surrogates and zero bytes."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "")


def csv_text(rng: random.Random, count: int) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["prompt", "completion"])
    for _ in range(count):
        fields = [*good(rng).values(), "surplus"]
        writer.writerow(
            [
                text.encode("utf-8", "replace").decode().replace("\x00", "")
                for text in fields[: rng.choice([1, 2, 2, 2, 3])]
            ]
        )
    return file.getvalue()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with more than 12,000 rows, and {file: how many rows it has}."""
    monkeypatch.chdir(tmp_path)
    folder, rng = tmp_path / "data/source", random.Random(0)
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl(rng, 5000))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(rng, 3000)))
    long = [{"prompt": f"Keep {character}", "completion": character * 10_000_000} for character in "x\x00"]
    long.append({"prompt": "nested " * 1_500_000, "completion": [long[0]["completion"]]})
    lines = [*(row(rng) for _ in range(1000)), *long]
    (folder / "c.json").write_text(json.dumps(lines))
    (folder / "d.csv").write_text(csv_text(rng, 2000), encoding="utf-8-sig", newline="")
    columns = {name: [good(rng)[name] if rng.random() < 0.9 else None for _ in range(1500)] for name in good(rng)}
    columns = {name: [text and standard(text) for text in texts] for name, texts in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "e.parquet")
    return {"a.jsonl": 5000, "b.jsonl.gz": 3000, "c.json": 1003, "d.csv": 2000, "e.parquet": 1500}


@pytest.mark.slow
def test_every_row_of_every_file_is_kept_or_rejected(source, params_of):
    data = {"source": "file", "path": "data/source", "limit": None, "format": "prompt-completion"}
    section = {"max_malformed_rows": 100_000, "secrets": "redact", "personal_data": "redact"}
    params = params_of(data=data, clean=section)
    download_data.main(params)
    clean.main(params)
    files = {name: pyarrow.parquet.read_table(CLEAN / f"{name}.parquet").to_pylist() for name in (*SPLITS, "rejected")}
    rows = [row for table in files.values() for row in table]
    sources = [row["source"].rpartition(":") for row in rows]
    assert len(rows) == len(set(sources)) == sum(source.values()) >= 10_000
    assert {name: sum(file == name for file, _, _ in sources) for name in source} == source
    assert all(row["id"] == content_id(row["messages"]) for row in rows)
    metrics = read_json(METRICS / "clean.json")
    assert metrics["rows"]["read"] == metrics["rows"]["kept"] + sum(metrics["rows"]["rejected"].values()) == len(rows)
    assert {name: counts["read"] for name, counts in metrics["sources"].items()} == source
    assert metrics["rows"]["kept"] > 3000
    assert metrics["rows"]["rejected"]["malformed"] > 1000
    assert metrics["rows"]["rejected"]["too_long"] >= 1
    twice = [row for row in files["rejected"] if '"second' in row["messages"][0]["content"].replace("\\", "")]
    assert len(twice) > 50
    assert {row["reason"] for row in twice} == {"malformed"}
    assert all("first" in row["messages"][0]["content"] for row in twice), "the line is kept whole"
