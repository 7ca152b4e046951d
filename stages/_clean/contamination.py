"""Decontamination: finds rows that share text with a benchmark that the model will be measured on.

A run is 13 consecutive words, or as much text in a script without blanks between words. A row is contaminated if runs
that it shares cover a third of one of the benchmark's texts, or 40 words of it. So a template or an idiom is no match.
"""

import json
import keyword
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, count
from pathlib import Path
from typing import NamedTuple

from stages.runtime.errors import UserError

RUN_WORDS = 13  # a benchmark's text with fewer words matches nothing
# What a token weighs: a word, a character of Chinese or Japanese, a letter of Thai, Lao, Khmer or Burmese.
WORD, CHARACTER, LETTER = 40, 26, 13  # so a run has 13, 20 or 40 of them
RUN = RUN_WORDS * WORD
MATCHED_SHARE, MATCHED = 1 / 3, 40 * WORD  # of a benchmark's text; one of them is enough
TEMPLATE_SHARE, TEMPLATE_LEAST, TEMPLATE_LINES = 1 / 3, 3, 100  # of the lines of a benchmark that have a run
TELLING_WORDS = 4  # different ones, in a run that counts
SHOWN = 300  # characters of what is shared
IDEOGRAPHS = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
IDEOGRAPHS += "\U00020000-\U0003ffff"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai, Lao, Burmese, Khmer
INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
ASCII_WORDS = re.compile(r"\w+", re.ASCII)
# Words of programs say nothing about which program it is.
CODE_WORDS = {word.lower() for word in keyword.kwlist} | set(
    re.findall(
        r"\w+",
        "__init__ __main__ __name__ abs all any append argparse args bool boolean char chr collections const counter "
        "defaultdict dict double elif enumerate filter find float format function get include input int isinstance "
        "items iter itertools join keys kwargs lambda len let list main map math matplotlib max min new null numpy "
        "object open optional ord out pandas parser plt pop print println private public pyplot range replace reversed "
        "round self set sorted split static std str string strip struct sum super system this torch tuple type typing "
        "union unittest using values var void zip",
    )
)
# Templates of well-known data sets, which a benchmark may have in a few lines only.
TEMPLATES = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
    "### Instruction:",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request. ### Instruction:",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.",
)


class Run(NamedTuple):
    """RUN_WORDS words of a text, or as many characters as weigh as much."""

    text: str  # the tokens, separated by blanks
    start: int  # its first token in the text
    end: int


@cache
def tokens_pattern() -> re.Pattern:
    """Returns what a token is: one character in scripts without blanks between words, else a word with its marks."""
    points = [*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)]
    marks = "".join(re.escape(chr(point)) for point in points if unicodedata.category(chr(point))[0] == "M")
    return re.compile(f"[{IDEOGRAPHS}][{marks}]*|[{UNSPACED}][{marks}]*|(?:(?![{IDEOGRAPHS}{UNSPACED}])[\\w{marks}])+")


def tokens_of(text: str) -> list[str]:
    """Returns the tokens of a text. Case, punctuation and the spelling of a character (NFKC) do not count."""
    if text.isascii():
        return ASCII_WORDS.findall(text.lower())
    plain = unicodedata.normalize("NFKC", text).casefold().translate(INVISIBLE)
    return [token for token in tokens_pattern().findall(plain) if token[0].isalnum() or token[0] == "_"]


def weight(token: str) -> int:
    first = token[0]
    if first < "\u0e00":
        return WORD
    if (
        first <= "\u0eff"
        or "\u1000" <= first <= "\u109f"
        or "\u1780" <= first <= "\u17ff"
        or "\ua9e0" <= first < "\uac00"
    ):
        return LETTER
    return CHARACTER if re.match(f"[{IDEOGRAPHS}]", first) else WORD


def run_texts(tokens: list[str]) -> Iterator[str]:
    """Returns every run of consecutive tokens that is just long enough, separated by single blanks."""
    # Slices of one string, because joining the tokens for every start takes several times as long.
    joined = " ".join(tokens)
    starts = list(accumulate((len(token) + 1 for token in tokens), initial=0))
    if joined.isascii():
        ends = starts[RUN_WORDS:]
    else:
        ends = (starts[end] for end in run_ends([weight(token) for token in tokens]))
    return (joined[start : end - 1] for start, end in zip(starts, ends, strict=False))


def runs_of(tokens: list[str]) -> Iterator[Run]:
    """Returns what run_texts() does, with the places."""
    return map(Run, run_texts(tokens), count(), run_ends([weight(token) for token in tokens]))


def run_ends(weights: list[int]) -> Iterator[int]:
    """Yields where the run that starts at each token ends, up to the last run."""
    end = total = 0
    for each in weights:
        while total < RUN and end < len(weights):
            total += weights[end]
            end += 1
        if total < RUN:
            return
        yield end
        total -= each


def joined_tokens(tokens: list[str]) -> str:
    """Joins tokens for the reader, with blanks where the script has them."""
    text = "".join(f" {token}" if weight(token) == WORD else token for token in tokens).strip()
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def is_telling(run: str) -> bool:
    """Whether a run has words that say what it is about. An idiom of a programming language has none."""
    words = {word for word in run.split(" ") if word not in CODE_WORDS and not word.isdigit()}
    return sum(len(word) > 2 or not word.isascii() for word in words) >= TELLING_WORDS


def strings_in(value: object) -> Iterator[str]:
    """Yields every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def benchmark_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, text) for each paragraph and each line of a .txt file, or every string in the lines of a .jsonl."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if path.suffix == ".txt":
        yield from text_parts(lines)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield from ((number, text) for text in strings_in(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UserError(f"clean.decontaminate: {path}:{number} is not valid JSON: {error}") from None


def text_parts(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yields (first line, text) for each paragraph, and for its lines if there are several."""
    paragraph: list[tuple[int, str]] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            paragraph.append((number, line))
        elif paragraph:
            yield paragraph[0][0], "\n".join(text for _, text in paragraph)
            if len(paragraph) > 1:
                yield from paragraph
            paragraph = []


class BenchmarkText(NamedTuple):
    """A text of a benchmark that rows are compared with."""

    name: str  # file:line
    weight: int  # of its tokens that are no template


class Benchmarks(NamedTuple):
    """What all benchmarks have: {run: where it is, as (index in texts, first token, end)}."""

    texts: list[BenchmarkText]
    places: dict[str, list[tuple[int, int, int]]]

    def add(self, name: str, lines: list[tuple[int, list[str]]]) -> None:
        """Adds the texts of a file, each as its line and tokens."""
        templates = template_runs(lines)
        for line, tokens in lines:
            own = [True] * len(tokens)
            runs = list(runs_of(tokens))
            for run in runs:
                if run.text in templates:
                    own[run.start : run.end] = [False] * (run.end - run.start)
            total = sum(weight(token) for token, counts in zip(tokens, own, strict=True) if counts)
            runs = [run for run in runs if all(own[run.start : run.end]) and is_telling(run.text)]
            for run in runs:
                self.places.setdefault(sys.intern(run.text), []).append((len(self.texts), run.start, run.end))
            if runs:
                self.texts.append(BenchmarkText(f"{name}:{line}", total))


def template_runs(lines: list[tuple[int, list[str]]]) -> set[str]:
    """Returns the runs that many lines of a benchmark have, and those of TEMPLATES."""
    having: Counter[str] = Counter()
    runs_of_line: defaultdict[int, set[str]] = defaultdict(set)
    for line, tokens in lines:
        runs_of_line[line].update(run.text for run in runs_of(tokens))
    for runs in runs_of_line.values():
        having.update(runs)
    least = min(TEMPLATE_LINES, max(TEMPLATE_LEAST, TEMPLATE_SHARE * len(runs_of_line)))
    known = {run.text for text in TEMPLATES for run in runs_of(tokens_of(text))}
    return known | {run for run, count in having.items() if count >= least}


def read_benchmarks(folder: Path, names: list[str]) -> Benchmarks:
    """Reads the named files.

    Raises:
        UserError: a file is missing, is not UTF-8, or is named .jsonl and has a line that is not JSON.
    """
    benchmarks = Benchmarks([], {})
    for name in names:
        try:
            benchmarks.add(name, [(line, tokens_of(text)) for line, text in benchmark_texts(folder / name)])
        except FileNotFoundError:
            raise UserError(
                f"clean.decontaminate: there is no file {folder / name}. Put it there, or remove its name"
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"clean.decontaminate: {folder / name} is not UTF-8 text") from None
    return benchmarks


def contamination(messages: list[dict[str, str]], benchmarks: Benchmarks) -> str | None:
    """Returns `file:line, share: text` for the benchmark's text of which the row has the most, or None."""
    if not benchmarks.places:
        return None
    covered: defaultdict[int, set[int]] = defaultdict(set)  # tokens of each text of a benchmark
    stretches: defaultdict[int, list[str]] = defaultdict(list)  # the longest that the row has of each
    for message in messages:
        tokens = tokens_of(message["content"])
        if benchmarks.places.keys().isdisjoint(run_texts(tokens)):
            continue
        begun: dict[int, tuple[int, int]] = {}
        for run in runs_of(tokens):
            if run.text not in benchmarks.places:
                continue
            for text, start, end in benchmarks.places[run.text]:
                covered[text].update(range(start, end))
                first, last = begun.get(text, (run.start, 0))
                begun[text] = (first if run.start <= last else run.start, run.end)
                first, last = begun[text]
                if last - first > len(stretches[text]):
                    stretches[text] = tokens[first:last]
    return most_shared(benchmarks, covered, stretches)


def most_shared(benchmarks: Benchmarks, covered: dict[int, set[int]], stretches: dict[int, list[str]]) -> str | None:
    """Returns what contamination() does, of the tokens that a row shares with each text of a benchmark."""
    shares = {}
    for text, tokens in covered.items():
        average = sum(map(weight, stretches[text])) / len(stretches[text])
        share = len(tokens) * average / benchmarks.texts[text].weight
        if share >= MATCHED_SHARE or len(tokens) * average >= MATCHED:
            shares[text] = share
    if not shares:
        return None
    text = min(shares, key=lambda text: (-shares[text], text))
    return f"{benchmarks.texts[text].name}, {min(1, shares[text]):.0%}: {joined_tokens(stretches[text])}"
