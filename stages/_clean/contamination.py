"""Decontamination: finds rows that share a run of words with a benchmark that the model will be measured on."""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from stages.runtime.errors import UserError

RUN_WORDS = 13  # a benchmark's text with fewer words matches nothing


def word_runs(text: str) -> Iterator[str]:
    """Returns every RUN_WORDS consecutive words, separated by single blanks. Case and punctuation do not count."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    # Slices of one string, because joining the words for every start takes several times as long.
    joined = " ".join(words)
    starts = list(accumulate((len(word) + 1 for word in words), initial=0))
    return (joined[start : end - 1] for start, end in zip(starts, starts[RUN_WORDS:], strict=False))


def strings_in(value: object) -> Iterator[str]:
    """Yields every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def benchmark_texts(path: Path) -> Iterator[str]:
    """Yields the whole text of a .txt file, or every string in the lines of a .jsonl file."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if path.suffix == ".txt":
        yield "\n".join(lines)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield from strings_in(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"clean.decontaminate: {path}:{number} is not valid JSON: {error}") from None


def read_benchmarks(folder: Path, names: list[str]) -> dict[str, str]:
    """Returns {run of words: the first of the named files that has it}.

    Raises:
        UserError: a file is missing, is not UTF-8, or is named .jsonl and has a line that is not JSON.
    """
    file_of_run: dict[str, str] = {}
    for name in names:
        try:
            for text in benchmark_texts(folder / name):
                file_of_run |= {run: name for run in word_runs(text) if run not in file_of_run}
        except FileNotFoundError:
            raise UserError(
                f"clean.decontaminate: there is no file {folder / name}. Put it there, or remove its name"
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"clean.decontaminate: {folder / name} is not UTF-8 text") from None
    return file_of_run


def contamination(messages: list[dict[str, str]], benchmarks: dict[str, str]) -> str | None:
    """Returns `file: words` for the first run of words that a benchmark has too, or None."""
    if not benchmarks:
        return None
    shared = (run for message in messages for run in word_runs(message["content"]) if run in benchmarks)
    run = next(shared, None)
    return f"{benchmarks[run]}: {run}" if run else None
