"""Duplicates and near-duplicates: of records that say the same, the one with the lowest id survives.

A record goes when any record with a lower id is too much like it, whether that one stays or not. So what is kept
depends on no order of rows, and more data can only take records away: none comes back, and none changes its split.
Candidates come from MinHash and locality-sensitive hashing, and the Jaccard similarity of their shingles decides.
"""

import hashlib
import math
import unicodedata
from functools import lru_cache

from stages.shared.records import Record

SHINGLE = 5  # characters: whitespace, one renamed variable or two swapped lines leave most of these as they were
SEED = 42  # of the hash functions alone: it has a say in which pairs are looked at, and none in what is decided
MISSED = 1e-4  # at most this share of the pairs exactly at the threshold is never looked at
MOST_HASHES = 256


def folded(text: str) -> str:
    """Without the differences that nobody sees: compatible characters (NFKC) and whitespace."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def fingerprint(record: Record) -> bytes:
    """Equal for conversations that differ in nothing but what folded() takes away."""
    turns = [f"{message['role']}\x1f{folded(message['content'])}" for message in record.messages]
    return hashlib.sha256("\x1e".join(turns).encode()).digest()


def shingles(record: Record) -> set[str]:
    """Every run of SHINGLE characters, but of the system turn: the same everywhere, it would make all rows alike."""
    text = " ".join(folded(message["content"]) for message in record.messages if message["role"] != "system")
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def similarity(one: set[str], other: set[str]) -> float:
    """Jaccard: the share of the shingles of either that both have."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, hashes a band): as many hashes a band, so as few vain candidates, as MISSED and MOST_HASHES allow."""
    choices = [(math.ceil(math.log(MISSED) / math.log1p(-(threshold**hashes))), hashes) for hashes in range(1, 9)]
    return [(bands, hashes) for bands, hashes in choices if bands * hashes <= MOST_HASHES][-1]


def near_duplicates(records: list[Record], threshold: float) -> dict[int, int]:
    """{place of a near-duplicate: place of the first record that stays} of records that come in the order of ids."""
    from rensa import RMinHash, RMinHashLSH

    bands, hashes = banding(threshold)
    signatures = RMinHash.from_token_sets(map(shingles, records), bands * hashes, SEED)
    index = RMinHashLSH(threshold, bands * hashes, bands)
    cached = lru_cache(maxsize=4096)(lambda place: shingles(records[place]))
    found: dict[int, int] = {}
    for place, signature in enumerate(signatures):
        for lower in sorted(index.query(signature)):
            if similarity(cached(place), cached(lower)) >= threshold:
                found[place] = found.get(lower, lower)
                break
        index.insert(place, signature)
    return found


def find_duplicates(records: list[Record], threshold: float | None) -> dict[int, tuple[str, str]]:
    """{place of a record that goes: (reason, id of the record that stays for it)}; threshold None: only duplicates."""
    order = sorted(range(len(records)), key=lambda place: (records[place].id, records[place].source))
    first: dict[bytes, int] = {}
    same = {place: first.setdefault(fingerprint(records[place]), place) for place in order}
    distinct = list(first.values())
    near = near_duplicates([records[place] for place in distinct], threshold) if threshold else {}
    survivor = {distinct[place]: distinct[lower] for place, lower in near.items()}
    return {
        place: (
            "near_duplicate" if lowest == place else "duplicate",
            records[survivor.get(lowest, lowest)].id,
        )
        for place, lowest in same.items()
        if lowest != place or lowest in survivor
    }
