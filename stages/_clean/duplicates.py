"""Finds duplicates and near-duplicates. The record with the lowest id stays.

A record is removed when a record with a lower id is too similar, even if that one is removed too. So the order of the
rows changes nothing. Which records stay depends on the whole data set; in which split a record is does not.
MinHash (Broder 1997) and locality-sensitive hashing give the candidates, and stages/_clean/similar.py decides. Only a
few hashes of each record are in memory; the texts of candidates are read again from files.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute

from stages._clean.common_text import CommonText, count_slots, distinct_shingles, read_common, text_batches
from stages._clean.signatures import band_hashes, banding, similarities
from stages._clean.similar import ComparedRow, Relation, relation, surely_near
from stages.core.workers import ordered_map
from stages.runtime.progress import progress

PAIRS_PER_BATCH = 20_000  # that one worker compares at a time
MOST_EDITS = 8  # of a record, in a batch: these are enough to see whether edits change the answer
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
    texts: StoredTexts = field(repr=False)


@dataclass(frozen=True)
class CandidatePairs:
    """Work for one worker: texts, and the indices of the texts to compare: higher[i] with lower[i]."""

    texts: StoredTexts
    higher: np.ndarray
    lower: np.ndarray
    threshold: float
    common: Path  # the file of CommonText.write()


class Compared(NamedTuple):
    """What the pairs of a batch are to each other."""

    relations: np.ndarray  # (pairs,) int8, of Relation
    sizes: np.ndarray  # (pairs,) int32, the characters of an edit


def compare_pairs(pairs: CandidatePairs) -> Compared:
    """Compares the pairs. After a record's first near-duplicate, and for MOST_EDITS edits, it looks no further."""
    texts, common = pairs.texts.read(), read_common(pairs.common)
    cached = lru_cache(maxsize=4096)(lambda place: ComparedRow(texts[place], common))
    compared = Compared(np.zeros(len(pairs.higher), np.int8), np.zeros(len(pairs.higher), np.int32))
    starts = np.flatnonzero(np.diff(pairs.higher, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(pairs.higher)], strict=True):
        # All pairs of a record at once: for single pairs, Python takes longer than the comparison.
        higher, lower = cached(int(pairs.higher[start])), [cached(place) for place in pairs.lower[start:end].tolist()]
        similar = similarities(higher.shingles, [row.shingles for row in lower]) >= pairs.threshold
        edits = 0
        for place in np.flatnonzero(similar).tolist():
            if edits == MOST_EDITS and not surely_near(higher, lower[place], pairs.threshold):
                continue
            found, size = relation(higher, lower[place], pairs.threshold)
            compared.relations[start + place], compared.sizes[start + place] = found, size
            edits += found in (Relation.EDITED, Relation.OTHER_ANSWER)
            if found == Relation.NEAR:
                break
    return compared


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


def pair_batches(pairs: np.ndarray, texts: StoredTexts, threshold: float, common: Path) -> Iterator[CandidatePairs]:
    """Yields batches of about PAIRS_PER_BATCH pairs. All pairs of a record are in the same batch."""
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    cuts = [*starts[np.flatnonzero(np.diff(starts // PAIRS_PER_BATCH, prepend=-1))], len(pairs)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        places, within = np.unique(pairs[start:end], return_inverse=True)
        higher, lower = within.reshape(-1, 2).T
        yield CandidatePairs(texts.subset(places), higher, lower, threshold, common)


def files_of(texts: StoredTexts) -> Iterator[np.ndarray]:
    """Yields the indices of the texts in each file, which are few enough for the memory of a worker."""
    for file in np.unique(texts.file):
        yield np.flatnonzero(texts.file == file)


def slots_of_file(texts: StoredTexts) -> tuple[np.ndarray, np.ndarray]:
    return count_slots(texts.read())


def find_common_text(texts: StoredTexts, path: Path, workers: int) -> None:
    """Writes to `path` which text is in the prompts of many of the records."""
    counts = CommonText(len(texts.file))
    for slots, rows in ordered_map(slots_of_file, map(texts.subset, files_of(texts)), workers):
        counts.add(slots, rows)
    counts.write(path)


def bands_of_file(texts: StoredTexts, common: Path, threshold: float) -> np.ndarray:
    """Returns band_hashes() of the texts in a file."""
    known = read_common(common)
    parts = [band_hashes(*distinct_shingles(batch, known), threshold) for batch in text_batches(texts.read())]
    return np.concatenate(parts)


def all_bands(texts: StoredTexts, common: Path, threshold: float, workers: int) -> np.ndarray:
    """Returns band_hashes() of all texts, (texts, bands)."""
    bands = np.empty((len(texts.file), banding(threshold)[0]), np.uint32)
    work = partial(bands_of_file, common=common, threshold=threshold)
    places = list(files_of(texts))
    for here, part in zip(places, ordered_map(work, map(texts.subset, places), workers), strict=True):
        bands[here] = part
    return bands


def near_duplicates(
    bands: np.ndarray, texts: StoredTexts, common: Path, threshold: float, workers: int
) -> dict[int, int]:
    """Returns {index of a near-duplicate: index of the record that stays} for records in the order of their ids."""
    buckets, most = Buckets(bands), FIRST_ROUND
    near = np.full(len(bands), -1)
    changes_answer = np.full(len(bands), np.iinfo(np.int32).max)  # the size of the smallest such edit of each record
    while len(buckets.higher):
        pairs = buckets.next_pairs(most)
        with progress("clean: near-duplicates", len(pairs), " pairs") as bar:
            parts = []
            for part in ordered_map(compare_pairs, pair_batches(pairs, texts, threshold, common), workers):
                parts.append(part)
                bar.advance(len(part.relations))
        relations, sizes = map(np.concatenate, zip(*parts, strict=True))
        for column in pairs.T:
            other = relations == Relation.OTHER_ANSWER
            np.minimum.at(changes_answer, column[other], sizes[other])
        smallest = changes_answer[pairs].min(axis=1)
        hits = pairs[(relations == Relation.NEAR) | (relations == Relation.EDITED) & (2 * sizes < smallest)][::-1]
        near[hits[:, 0]] = hits[:, 1]  # the lowest of several, because it comes last
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
        texts = keys.texts.subset(order[distinct])
        common = keys.texts.files[0].with_name("common")
        find_common_text(texts, common, workers)
        survivors = near_duplicates(all_bands(texts, common, threshold, workers), texts, common, threshold, workers)
        near = {int(distinct[place]): int(distinct[lower]) for place, lower in survivors.items()}
    removed = np.flatnonzero((lowest != np.arange(len(order))) | np.isin(lowest, [*near]))
    return {
        int(order[place]): (
            "near_duplicate" if lowest[place] == place else "duplicate",
            keys.ids[order[near.get(int(lowest[place]), int(lowest[place]))]].decode(),
        )
        for place in removed.tolist()
    }


def count_absorbed(keys: DuplicateKeys, duplicates: dict[int, tuple[str, str]]) -> Counter[str]:
    """Counts the near-duplicates for which a row stays.

    Args:
        duplicates: what find_duplicates() returned.

    Returns:
        {source of the row that stays: near-duplicates}.
    """
    by_id = Counter(record for reason, record in duplicates.values() if reason == "near_duplicate")
    places = {record: place for place, record in enumerate(keys.ids.tolist()) if place not in duplicates}
    return Counter({keys.sources[places[record.encode()]]: count for record, count in by_id.items()})
