"""Duplicates and near-duplicates: of records that say the same, the one with the lowest id survives.

A record goes when a record with a lower id is too much like it, whether that one stays or not. So what is kept
depends on no order of rows, and more data can only take records away: none comes back, and none changes its split.
Candidates come from MinHash (Broder 1997) and locality-sensitive hashing, and the Jaccard similarity of their shingles
decides. A record is known here by a few hashes; its text is read again from a file only where it is a candidate.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute

from stages._clean.signatures import shingles, similarities
from stages.core.workers import ordered_map
from stages.runtime.progress import progress

PAIRS = 20_000  # for one worker at a time
FIRST_LOOK = 8  # candidates from each bucket; eight times as many at each further look


@dataclass(frozen=True)
class Texts:
    """Where the compared texts lie: UTF-8 files, and for each text its file and its first and last byte."""

    files: list[Path]
    file: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def some(self, places: np.ndarray) -> "Texts":
        return Texts(self.files, self.file[places], self.start[places], self.end[places])

    def read(self) -> list[str]:
        """All of them, each file opened once."""
        found = [""] * len(self.file)
        for file in np.unique(self.file):
            with open(self.files[file], "rb") as opened:
                for place in np.flatnonzero(self.file == file):
                    opened.seek(self.start[place])
                    found[place] = opened.read(self.end[place] - self.start[place]).decode()
        return found


@dataclass(frozen=True)
class Keys:
    """What is known of each record that passed the rules: all that the search for duplicates holds in memory."""

    ids: np.ndarray  # S32
    sources: list[str]
    fingerprints: np.ndarray  # S32
    bands: np.ndarray  # (records, bands) uint32, as band_hashes() gives them
    texts: Texts = field(repr=False)


@dataclass(frozen=True)
class Pairs:
    """Work for one worker: the texts, and by their places in them who is compared with whom."""

    texts: Texts
    higher: np.ndarray
    lower: np.ndarray
    threshold: float


def first_similar(pairs: Pairs) -> np.ndarray:
    """For each pair whether it is the first of its higher one's at or above the threshold."""
    texts = pairs.texts.read()
    cached = lru_cache(maxsize=4096)(lambda place: np.unique(shingles(texts[place])))
    found = np.zeros(len(pairs.higher), bool)
    starts = np.flatnonzero(np.diff(pairs.higher, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(found)], strict=True):
        # All of a record's pairs at once: one by one, Python would take longer than the comparison.
        lower = [cached(place) for place in pairs.lower[start:end].tolist()]
        similar = similarities(cached(int(pairs.higher[start])), lower) >= pairs.threshold
        if similar.any():
            found[start + similar.argmax()] = True
    return found


class Buckets:
    """For each band the records in the order of their hashes, so that those with the same hash stand side by side."""

    def __init__(self, bands: np.ndarray):
        """`bands` in the order of ids. Only records that share a bucket with a lower one are kept in mind."""
        orders, entries, offset = [], [], 0
        for column in bands.T:
            order = np.argsort(column, kind="stable")
            hashes = column[order]
            first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
            begins = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
            places = np.flatnonzero(~first)
            entries.append(np.stack([order[places], begins[places] + offset, places + offset]))
            orders.append(order.astype(np.uint32))
            offset += len(order)
        self.order = np.concatenate([np.empty(0, np.uint32), *orders])
        # The record, where its bucket begins in `order`, and where it stands itself.
        self.higher, self.begins, self.stands = np.concatenate([np.empty((3, 0), np.int64), *entries], axis=1)

    def look(self, most: int) -> np.ndarray:
        """The next pairs (pairs, 2) of each record with lower ones in its buckets, `most` of a bucket, in order."""
        counts = np.minimum(self.stands - self.begins, most)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        lower = self.order[np.repeat(self.begins, counts) + within]
        keys = np.unique(np.repeat(self.higher, counts) << 32 | lower)
        self.begins = self.begins + counts
        return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)

    def forget(self, done: np.ndarray) -> None:
        """The records for which a similar one was found, and the buckets that were looked through."""
        left = (self.begins < self.stands) & ~done[self.higher]
        self.higher, self.begins, self.stands = (each[left] for each in (self.higher, self.begins, self.stands))


def jobs(pairs: np.ndarray, texts: Texts, threshold: float) -> Iterator[Pairs]:
    """About PAIRS pairs each; all those of one record are in one."""
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    cuts = [*starts[np.flatnonzero(np.diff(starts // PAIRS, prepend=-1))], len(pairs)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        places, within = np.unique(pairs[start:end], return_inverse=True)
        higher, lower = within.reshape(-1, 2).T
        yield Pairs(texts.some(places), higher, lower, threshold)


def near_duplicates(bands: np.ndarray, texts: Texts, threshold: float, workers: int) -> dict[int, int]:
    """{place of a near-duplicate: place of the first record that stays} of records that come in the order of ids."""
    buckets, most = Buckets(bands), FIRST_LOOK
    near = np.full(len(bands), -1)
    while len(buckets.higher):
        pairs = buckets.look(most)
        with progress("clean: near-duplicates", len(pairs), " pairs") as bar:
            found = []
            for part in ordered_map(first_similar, jobs(pairs, texts, threshold), workers):
                found.append(part)
                bar.advance(len(part))
        hits = pairs[np.concatenate(found)]
        near[hits[:, 0]] = hits[:, 1]
        buckets.forget(near >= 0)
        most *= 8
    survivor: dict[int, int] = {}
    for place in np.flatnonzero(near >= 0).tolist():
        lower = int(near[place])
        survivor[place] = survivor.get(lower, lower)
    return survivor


def find_duplicates(keys: Keys, threshold: float | None, workers: int) -> dict[int, tuple[str, str]]:
    """{place of a record that goes: (reason, id of the record that stays for it)}; threshold None: only duplicates."""
    table = pyarrow.table({"id": pyarrow.array(keys.ids), "source": pyarrow.array(keys.sources, pyarrow.string())})
    order = pyarrow.compute.sort_indices(table, sort_keys=[("id", "ascending"), ("source", "ascending")]).to_numpy()
    _, first, same = np.unique(keys.fingerprints[order], return_index=True, return_inverse=True)
    lowest = first[same]  # in the order of ids: the first one with the same fingerprint
    distinct = np.sort(first)
    near: dict[int, int] = {}
    if threshold is not None:
        found = near_duplicates(keys.bands[order[distinct]], keys.texts.some(order[distinct]), threshold, workers)
        near = {int(distinct[place]): int(distinct[lower]) for place, lower in found.items()}
    going = np.flatnonzero((lowest != np.arange(len(order))) | np.isin(lowest, [*near]))
    return {
        int(order[place]): (
            "near_duplicate" if lowest[place] == place else "duplicate",
            keys.ids[order[near.get(int(lowest[place]), int(lowest[place]))]].decode(),
        )
        for place in going.tolist()
    }
