"""Decontamination: which rows share a run of words with a benchmark that the model will be measured on."""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from stages.runtime.errors import UserError

RUN = 13  # words in a row; a shorter text of a benchmark finds nothing


def runs(text: str) -> Iterator[str]:
    """Every RUN words in a row, whatever stands between them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    # Slices of one string: to join RUN words for every start would take several times as long.
    joined = " ".join(words)
    starts = list(accumulate((len(word) + 1 for word in words), initial=0))
    return (joined[start : end - 1] for start, end in zip(starts, starts[RUN:], strict=False))


def texts(value: object) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def benchmark_texts(path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if path.suffix == ".txt":
        yield "\n".join(lines)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield from texts(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"clean.decontaminate: {path}:{number} is not valid JSON: {error}") from None


def read_benchmarks(folder: Path, names: list[str]) -> dict[str, str]:
    """{run of words: the first of the named files that has it}.

    Raises:
        UserError: a file that is missing, or is not what its ending says.
    """
    found: dict[str, str] = {}
    for name in names:
        try:
            for text in benchmark_texts(folder / name):
                found |= {run: name for run in runs(text) if run not in found}
        except FileNotFoundError:
            raise UserError(
                f"clean.decontaminate: there is no file {folder / name}. Put it there, or take its name out"
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"clean.decontaminate: {folder / name} is not UTF-8 text") from None
    return found


def contamination(messages: list[dict[str, str]], benchmarks: dict[str, str]) -> str | None:
    """`file: words` of the first run of words that a benchmark has too."""
    if not benchmarks:
        return None
    shared = (run for message in messages for run in runs(message["content"]) if run in benchmarks)
    run = next(shared, None)
    return f"{benchmarks[run]}: {run}" if run else None
