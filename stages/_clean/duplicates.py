"""Finds duplicates and near-duplicates. The record with the lowest id stays.

A record is removed when a record with a lower id is too similar, even if that one is removed too. So the order of the
rows changes nothing, and more data can only remove records: none comes back, and none changes its split.
MinHash (Broder 1997) and locality-sensitive hashing give the candidates. The Jaccard similarity of their shingles
decides. Only a few hashes of each record are in memory; the texts of candidates are read again from files.
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

PAIRS_PER_BATCH = 20_000  # that one worker compares at a time
FIRST_ROUND = 8  # of each bucket in the first round; each round takes eight times as many


@dataclass(frozen=True)
class StoredTexts:
    """Where the compared texts are: UTF-8 files, and for each text the index of its file, its first byte, its end."""

    files: list[Path]
    file: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def subset(self, places: np.ndarray) -> "StoredTexts":
        return StoredTexts(self.files, self.file[places], self.start[places], self.end[places])

    def read(self) -> list[str]:
        """Reads all texts and opens each file once."""
        texts = [""] * len(self.file)
        for file in np.unique(self.file):
            with open(self.files[file], "rb") as stream:
                for place in np.flatnonzero(self.file == file):
                    stream.seek(self.start[place])
                    texts[place] = stream.read(self.end[place] - self.start[place]).decode()
        return texts


@dataclass(frozen=True)
class DuplicateKeys:
    """What the search for duplicates holds in memory of each record that passed the rules."""

    ids: np.ndarray  # S32
    sources: list[str]
    fingerprints: np.ndarray  # S32
    bands: np.ndarray  # (records, bands) uint32, from band_hashes()
    texts: StoredTexts = field(repr=False)


@dataclass(frozen=True)
class CandidatePairs:
    """Work for one worker: texts, and the indices of the texts to compare: higher[i] with lower[i]."""

    texts: StoredTexts
    higher: np.ndarray
    lower: np.ndarray
    threshold: float


def first_similar(pairs: CandidatePairs) -> np.ndarray:
    """Marks, for each higher record, its first pair at or above the threshold.

    Returns:
        (pairs,) bool.
    """
    texts = pairs.texts.read()
    cached = lru_cache(maxsize=4096)(lambda place: np.unique(shingles(texts[place])))
    is_first = np.zeros(len(pairs.higher), bool)
    starts = np.flatnonzero(np.diff(pairs.higher, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(is_first)], strict=True):
        # All pairs of a record at once: for single pairs, Python takes longer than the comparison.
        lower = [cached(place) for place in pairs.lower[start:end].tolist()]
        similar = similarities(cached(int(pairs.higher[start])), lower) >= pairs.threshold
        if similar.any():
            is_first[start + similar.argmax()] = True
    return is_first


class Buckets:
    """For each band the records sorted by their hashes, so that those with the same hash follow each other."""

    def __init__(self, bands: np.ndarray):
        """Takes `bands` in the order of ids and keeps the records that share a bucket with a lower one."""
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
        # The record, the index in `order` where its bucket begins, and its own index there.
        self.higher, self.begins, self.place = np.concatenate([np.empty((3, 0), np.int64), *entries], axis=1)

    def next_pairs(self, most: int) -> np.ndarray:
        """Returns the next pairs of each record with lower ones, at most `most` a bucket, as sorted (pairs, 2)."""
        counts = np.minimum(self.place - self.begins, most)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        lower = self.order[np.repeat(self.begins, counts) + within]
        keys = np.unique(np.repeat(self.higher, counts) << 32 | lower)
        self.begins = self.begins + counts
        return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)

    def drop_finished(self, done: np.ndarray) -> None:
        """Drops the records for which a similar one was found, and the buckets without further pairs."""
        left = (self.begins < self.place) & ~done[self.higher]
        self.higher, self.begins, self.place = (column[left] for column in (self.higher, self.begins, self.place))


def pair_batches(pairs: np.ndarray, texts: StoredTexts, threshold: float) -> Iterator[CandidatePairs]:
    """Yields batches of about PAIRS_PER_BATCH pairs. All pairs of a record are in the same batch."""
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    cuts = [*starts[np.flatnonzero(np.diff(starts // PAIRS_PER_BATCH, prepend=-1))], len(pairs)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        places, within = np.unique(pairs[start:end], return_inverse=True)
        higher, lower = within.reshape(-1, 2).T
        yield CandidatePairs(texts.subset(places), higher, lower, threshold)


def near_duplicates(bands: np.ndarray, texts: StoredTexts, threshold: float, workers: int) -> dict[int, int]:
    """Returns {index of a near-duplicate: index of the record that stays} for records in the order of their ids."""
    buckets, most = Buckets(bands), FIRST_ROUND
    near = np.full(len(bands), -1)
    while len(buckets.higher):
        pairs = buckets.next_pairs(most)
        with progress("clean: near-duplicates", len(pairs), " pairs") as bar:
            parts = []
            for part in ordered_map(first_similar, pair_batches(pairs, texts, threshold), workers):
                parts.append(part)
                bar.advance(len(part))
        hits = pairs[np.concatenate(parts)]
        near[hits[:, 0]] = hits[:, 1]
        buckets.drop_finished(near >= 0)
        most *= 8
    survivor: dict[int, int] = {}
    for place in np.flatnonzero(near >= 0).tolist():
        lower = int(near[place])
        survivor[place] = survivor.get(lower, lower)
    return survivor


def find_duplicates(keys: DuplicateKeys, threshold: float | None, workers: int) -> dict[int, tuple[str, str]]:
    """Returns {index of a record that is removed: (reason, id of the record that stays for it)}.

    Args:
        threshold: the Jaccard similarity from which records are near-duplicates; None finds only duplicates.
    """
    table = pyarrow.table({"id": pyarrow.array(keys.ids), "source": pyarrow.array(keys.sources, pyarrow.string())})
    order = pyarrow.compute.sort_indices(table, sort_keys=[("id", "ascending"), ("source", "ascending")]).to_numpy()
    _, first, same = np.unique(keys.fingerprints[order], return_index=True, return_inverse=True)
    lowest = first[same]  # for each record in the order of ids, the first with the same fingerprint
    distinct = np.sort(first)
    near: dict[int, int] = {}
    if threshold is not None:
        survivors = near_duplicates(keys.bands[order[distinct]], keys.texts.subset(order[distinct]), threshold, workers)
        near = {int(distinct[place]): int(distinct[lower]) for place, lower in survivors.items()}
    removed = np.flatnonzero((lowest != np.arange(len(order))) | np.isin(lowest, [*near]))
    return {
        int(order[place]): (
            "near_duplicate" if lowest[place] == place else "duplicate",
            keys.ids[order[near.get(int(lowest[place]), int(lowest[place]))]].decode(),
        )
        for place in removed.tolist()
    }
