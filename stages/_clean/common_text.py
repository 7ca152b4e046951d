"""Finds the text in prompts that many rows have, such as a template, an instruction or a passage.

It does not tell rows apart, so the search for near-duplicates leaves it out.
Every run of WINDOW characters is hashed, and half of the hashes is counted in a table of a fixed size.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from stages._clean.signatures import ANSWER, HASH_FACTOR, PROMPT, SHINGLE, characters_of, mixed, shingles

WINDOW = 16  # characters, a power of 2; shorter runs are in many rows by chance
SAMPLED = 2  # one in so many runs is counted: the others next to it are covered by it
SLOTS = 1 << 24  # counters: runs with the same slot are counted together, which matters only far below LARGEST_COMMON
COMMON_SHARE = 0.05  # of the rows: text in so many prompts is common
BATCH_CHARACTERS = 1 << 20  # the characters whose runs are in memory at one time
LEAST_COMMON, LARGEST_COMMON = 3, 500  # rows, whatever the share is


def common_rows(rows: int) -> int:
    """Returns in how many of the rows a run of text is common."""
    return int(min(LARGEST_COMMON, max(LEAST_COMMON, np.ceil(COMMON_SHARE * rows))))


class JoinedTexts:
    """Compared texts one after the other. numpy takes less time for many of them than for each.

    Attributes:
        codes: of the characters of all texts, (characters,) uint32.
        marks: for each character whether it begins a turn. The first of each text does.
        starts: where each text starts.
        prompts: where the marks and the characters of the prompts are.
    """

    def __init__(self, texts: list[str]):
        texts = [text.ljust(SHINGLE + 1, "\0") for text in texts]  # so that each has a run
        self.codes = characters_of("".join(texts))
        is_prompt = self.codes == ord(PROMPT)
        self.marks = is_prompt | (self.codes == ord(ANSWER))
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.starts = np.cumsum(lengths) - lengths
        turns = np.flatnonzero(self.marks)
        in_prompt = np.repeat(is_prompt[turns], np.diff(turns, append=len(self.codes)))
        self.prompts = np.flatnonzero(in_prompt | self.marks)


def prompt_windows(joined: JoinedTexts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sampled runs of WINDOW characters inside a turn of a prompt.

    Returns:
        their first characters, as indices into joined.prompts, and their slots in the table.
    """
    hashes, marked = joined.codes[joined.prompts].astype(np.uint64), joined.marks[joined.prompts]
    width, factor = 1, int(HASH_FACTOR)
    while width < WINDOW and width < len(hashes):  # a run of twice the width is two runs next to each other
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        marked = marked[:-width] | marked[width:]
        factor, width = factor * factor % (1 << 64), width * 2
    if width < WINDOW:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    hashes = mixed(hashes)
    firsts = np.flatnonzero((hashes % np.uint64(SAMPLED) == 0) & ~marked)
    return firsts, (hashes[firsts] >> np.uint64(32)).astype(np.int64) % SLOTS


def count_slots(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the slots of the runs in these texts, and in how many texts each is."""
    found = [np.empty(0, np.uint32)]
    for batch in text_batches(texts):
        joined = JoinedTexts(batch)
        firsts, slots = prompt_windows(joined)
        text = np.searchsorted(joined.starts, joined.prompts[firsts], "right")
        keys = np.sort(text << 32 | slots)
        found.append((keys[np.diff(keys, prepend=-1) != 0] & 0xFFFFFFFF).astype(np.uint32))
    slots = np.sort(np.concatenate(found))
    first = np.flatnonzero(np.diff(slots.astype(np.int64), prepend=-1))
    return slots[first], np.diff(first, append=len(slots))


def text_batches(texts: list[str]) -> Iterator[list[str]]:
    """Yields the texts in batches of about BATCH_CHARACTERS."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class CommonText:
    """Counts in how many rows each run of text is."""

    def __init__(self, rows: int):
        self.most = common_rows(rows)
        self.counts = np.zeros(SLOTS, np.uint16)

    def add(self, slots: np.ndarray, counts: np.ndarray) -> None:
        """Adds what count_slots() returned."""
        self.counts[slots] = np.minimum(self.counts[slots] + counts, self.most)

    def write(self, path: Path) -> None:
        """Writes a bit for each slot: whether it is common."""
        np.packbits(self.counts >= self.most).tofile(path)


def read_common(path: Path) -> np.ndarray:
    """Returns what write() wrote. Each process reads it once."""
    return read_version(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def read_version(path: Path, _written: int) -> np.ndarray:
    return np.fromfile(path, np.uint8)


def distinct_shingles(texts: list[str], common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes the runs of SHINGLE characters that are not inside common text, with repetitions.

    Args:
        texts: from compared_text(), at least one. Of each the last run is always taken.
        common: from read_common().

    Returns:
        (runs,) uint64, and for each text where its runs end.
    """
    joined = JoinedTexts(texts)
    size = len(joined.codes)
    covered = np.zeros(size, bool)
    firsts, slots = prompt_windows(joined)
    firsts = firsts[(common[slots >> 3] >> (7 - (slots & 7)).astype(np.uint8)) & 1 == 1]
    if len(firsts):
        change = np.zeros(len(joined.prompts) + 1, np.int32)
        change[firsts] += 1
        change[firsts + WINDOW] -= 1
        covered[joined.prompts] = np.cumsum(change[:-1]) > 0
    taken = np.ones(size - SHINGLE + 1, bool)
    if len(firsts):
        inside = covered[: len(taken)].copy()
        for place in range(1, SHINGLE):
            inside &= covered[place : place + len(taken)]
        taken &= ~inside
    ends = np.append(joined.starts[1:], size)
    taken[ends - SHINGLE] = True
    taken[joined.starts] = False
    for place in range(1, SHINGLE):
        taken[ends[:-1] - place] = False
    hashes = shingles(np.where(joined.marks, np.uint32(ord(" ")), joined.codes))[taken]
    return hashes, np.add.reduceat(taken, joined.starts, dtype=np.int64).cumsum()
