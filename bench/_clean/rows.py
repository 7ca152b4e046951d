"""Rows for the benchmark of `clean`: parts of real functions put together anew, with duplicates planted among them.

A row is a function of the seed and its number alone, so that any number of them is written without holding them, and a
copy is made by making its original once more.
"""

import ast
import json
import math
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages._clean.formats import turn
from stages._clean.signatures import compared_text, plain_text, shingles, similarities, turns_of
from stages.core.paths import RAW, write_json
from stages.core.python_syntax import parse
from stages.core.records import Record, content_id

THRESHOLD = 0.8  # a near-duplicate that is planted is at least so similar to its original, and a related row is less
LAYOUT = {
    "format": "prompt-completion",
    "columns": {"user": ["prompt"], "assistant": ["completion"]},
    **{"tests": False, "ignored": []},
}
EXACT, NEAR, RELATED = 0.05, 0.05, 0.1  # shares of the rows
# Shares of the other rows that give the rules for one row some work.
OUTSIDE_ASCII, PRIVATE = 0.1, 0.01
SENTENCES = (
    "Größe und naïve Schätzung — kein Fehler.",
    "Il renvoie l’élément trouvé.",
    "donâ€™t call it twice, itâ€™s slow.",
)
PRIVATES = ("Ask jane.doe@mail.firm.co.uk.", "The server is 8.8.8.8.", "Use AK" + "IAQWERTYUIOPASDFGH.")
HELD_OUT = 40  # every so-manieth function is in no row, so that the benchmark's texts are found in none
SHARD_ROWS = 10_000  # of a file of data/raw, at most, and of one for each of the processes that clean
SHARDS = 2  # of the texts alone, as the other libraries read them


class Piece(NamedTuple):
    """A statement, as text that stays (even places) and variables and numbers (odd places)."""

    parts: list[str]
    variables: frozenset[str]

    def varied(self, rng: random.Random, names: dict[str, str]) -> str:
        parts = list(self.parts)
        for place in range(1, len(parts), 2):
            if parts[place].isdigit():
                parts[place] = str(rng.randrange(100)) if rng.random() < 0.5 else parts[place]
            else:
                parts[place] = names.get(parts[place], parts[place])
        return "".join(parts)


class Planted(NamedTuple):
    row: int
    original: int
    kind: str  # exact | near
    similarity: float  # Jaccard of the shingles of stages/_clean/signatures.py


def record(row: dict, number: int) -> Record:
    messages = [turn("user", row["prompt"]), turn("assistant", row["completion"])]
    return Record(content_id(messages), messages, f"rows:{number}")


def shingled(record: Record) -> np.ndarray:
    """Hashes of the runs of characters by which the stage compares, each once."""
    return np.unique(shingles(plain_text(compared_text(turns_of(record)))))


def alike(one: dict, other: dict) -> float:
    return float(similarities(shingled(record(one, 0)), [shingled(record(other, 0))])[0])


def stored(tree: ast.AST) -> frozenset[str]:
    """Variables that are set, but for those as short as the letters before a string."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return frozenset(node.id for node in nodes if len(node.id) > 2)


def pieces_of(code: str) -> Iterator[Piece]:
    """The statements of a function that Python's parser also takes by themselves, none very short or long."""
    lines = code.split("\n")
    for statement in parse(code).body[0].body:
        text = textwrap.dedent("\n".join(lines[statement.lineno - 1 : statement.end_lineno]))
        if 40 <= len(text) <= 400 and parse(text) is not None:
            variables = stored(statement)
            pattern = "|".join([r"\d+", *map(re.escape, sorted(variables))])
            yield Piece(re.split(rf"(?<!\\)\b({pattern})\b", text), variables)


def respaced(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    lines.insert(rng.randrange(1, len(lines) + 1), "")
    return "\n".join(lines).replace("    ", "  ").replace(", ", ",  ") + "\n"


def renamed(code: str, rng: random.Random) -> str:
    variables = sorted(stored(parse(code)))
    return re.sub(rf"\b{re.escape(rng.choice(variables))}\b", f"other{rng.randrange(100)}", code) if variables else code


def commented(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    lines.insert(rng.randrange(1, len(lines) + 1), f"    # {rng.choice(['as before', 'not needed', 'see above'])}")
    return "\n".join(lines)


def swapped(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    here = rng.randrange(len(lines) - 1)
    return "\n".join([*lines[:here], lines[here + 1], lines[here], *lines[here + 2 :]])


EDITS: tuple[Callable[[str, random.Random], str], ...] = (respaced, renamed, commented, swapped)


class Rows:
    """Rows made of `functions`, rows as download_data writes them of documented Python functions."""

    def __init__(self, functions: Iterable[dict], seed: int):
        functions = [each["row"] for each in functions]
        self.seed = seed
        self.held_out = [each["prompt"] for each in functions[::HELD_OUT]]
        used = [each for place, each in enumerate(functions) if place % HELD_OUT]
        self.pieces = [piece for each in used for piece in pieces_of(each["completion"])]
        self.vocabulary = sorted({name for piece in self.pieces for name in piece.variables})
        sentences = {line.strip() for each in used for line in each["prompt"].split("\n")[4:]}
        self.sentences = sorted(line for line in sentences if len(line) >= 40)

    def random(self, number: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}:{number}:{purpose}")  # noqa: S311, nothing here is to be kept from anybody

    def kind(self, number: int) -> str:
        drawn = self.random(number, "kind").random()
        for kind, share in (
            ("exact", EXACT),
            ("near", NEAR),
            ("related", RELATED),
            ("special", OUTSIDE_ASCII + PRIVATE),
        ):
            if drawn < share:
                return kind if number >= 100 else "original"  # the first ones are what others are copied from
            drawn -= share
        return "original"

    def parts(self, number: int) -> tuple[list[str], list[str]]:
        """(statements, sentences) of a row."""
        rng = self.random(number, "parts")
        drawn = rng.sample(self.pieces, rng.randint(3, 9))
        variables = sorted(frozenset().union(*(piece.variables for piece in drawn)))
        names = {name: rng.choice(self.vocabulary) for name in variables if rng.random() < 0.5}
        return [piece.varied(rng, names) for piece in drawn], rng.sample(self.sentences, rng.randint(1, 4))

    def made(self, number: int, statements: list[str], sentences: list[str]) -> dict:
        rng = self.random(number, "name")
        name, *arguments = (rng.choice(self.vocabulary) for _ in range(rng.randint(2, 5)))
        first = f"def {name}_{number}({', '.join(dict.fromkeys(arguments))}):"
        prompt = "\n".join([f"Write `{name}_{number}`.", "", first, "", *sentences])
        return {
            "prompt": prompt,
            "completion": "\n".join([first, *(textwrap.indent(each, "    ") for each in statements)]),
        }

    def original(self, number: int) -> dict:
        return self.made(number, *self.parts(number))

    def earlier(self, number: int) -> Iterator[int]:
        """Numbers of originals before this one, in a random order, for ever."""
        rng = self.random(number, "earlier")
        while True:
            if self.kind(found := rng.randrange(number)) == "original":
                yield found

    def special(self, number: int) -> dict:
        statements, sentences = self.parts(number)
        rng = self.random(number, "special")
        more = SENTENCES if rng.random() < OUTSIDE_ASCII / (OUTSIDE_ASCII + PRIVATE) else PRIVATES
        return self.made(number, statements, [*sentences, rng.choice(more)])

    def related(self, number: int) -> dict:
        """A row that has much in common with another one, but is none of its near-duplicates."""
        rng = self.random(number, "related")
        original = next(self.earlier(number))
        (statements, sentences), (more, _) = self.parts(original), self.parts(number)
        kept = rng.sample(statements, max(2, len(statements) * 3 // 4))
        row = self.made(original, [*kept, *more[:2]], sentences)
        return row if alike(row, self.original(original)) < THRESHOLD else self.original(number)

    def near(self, number: int) -> tuple[dict, Planted]:
        rng = self.random(number, "near")
        for original in self.earlier(number):
            row = found = self.original(original)
            left = rng.randint(1, 10)
            for edit in rng.choices(EDITS, k=20):
                changed = {**found, "completion": edit(found["completion"], rng)}
                if changed != found and parse(changed["completion"]) and alike(changed, row) >= THRESHOLD:
                    found, left = changed, left - 1
                if left == 0:
                    return found, Planted(number, original, "near", alike(found, row))
        raise AssertionError("earlier() never ends")

    def row(self, number: int) -> tuple[dict, Planted | None]:
        kind = self.kind(number)
        if kind == "exact":
            original = next(self.earlier(number))
            return self.original(original), Planted(number, original, kind, 1.0)
        if kind == "near":
            return self.near(number)
        return {"original": self.original, "special": self.special, "related": self.related}[kind](number), None


def write_rows(rows: Rows, count: int, folder: Path) -> None:
    """data/raw as download_data writes it, texts/*.jsonl of {id, text} of the same rows, and planted.jsonl."""
    (folder / "texts").mkdir(parents=True)
    (folder / RAW).mkdir(parents=True)
    write_json(folder / RAW / "format.json", LAYOUT)
    size = min(SHARD_ROWS, math.ceil(count / SHARDS))
    with ExitStack() as stack, open(folder / "planted.jsonl", "w", encoding="utf-8") as truth:
        for number in range(count):
            if number % size == 0:
                raw = stack.enter_context(open(folder / RAW / f"rows-{number // size:05}.jsonl", "w", encoding="utf-8"))
            if number * SHARDS % count < SHARDS:
                name = f"texts/{number * SHARDS // count}.jsonl"
                texts = stack.enter_context(open(folder / name, "w", encoding="utf-8"))
            row, planted = rows.row(number)
            raw.write(json.dumps({"source": f"rows:{number}", "row": row}) + "\n")
            texts.write(json.dumps({"id": str(number), "text": f"{row['prompt']}\n{row['completion']}"}) + "\n")
            if planted:
                truth.write(json.dumps(planted._asdict()) + "\n")


def read_planted(folder: Path) -> list[Planted]:
    with open(folder / "planted.jsonl", encoding="utf-8") as file:
        return [Planted(**json.loads(line)) for line in file]


def read_lines(folder: Path) -> Iterator[str]:
    """The lines of data/raw."""
    for path in sorted((folder / RAW).glob("rows-*.jsonl")):
        with open(path, encoding="utf-8") as file:
            yield from file


def read_records(folder: Path) -> Iterator[Record]:
    for number, line in enumerate(read_lines(folder)):
        yield record(json.loads(line)["row"], number)
