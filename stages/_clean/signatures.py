"""What a conversation is known by where duplicates are looked for: a fingerprint, its shingles, hashes of them.

MinHash (Broder 1997) of the shingles, in bands: texts that are much alike have a band's hash in common.
"""

import hashlib
import math
import unicodedata

import numpy as np

from stages.core.records import Record

SHINGLE = 5  # characters: whitespace, one renamed variable or two swapped lines leave most of these as they were
SEED = 42  # of the hash functions alone: it has a say in which pairs are looked at, and none in what is decided
MISSED = 1e-4  # at most this share of the pairs exactly at the threshold is never looked at
MOST_HASHES = 256
BATCH = 1 << 20  # characters whose shingles are in memory at one time


def folded(text: str) -> str:
    """Without the differences that nobody sees: compatible characters (NFKC) and whitespace."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def fingerprint(turns: list[tuple[str, str]]) -> bytes:
    """Of (role, folded text) pairs: equal for conversations that differ in nothing but what folded() takes away."""
    return hashlib.sha256("\x1e".join(f"{role}\x1f{text}" for role, text in turns).encode()).hexdigest()[:32].encode()


def compared(turns: list[tuple[str, str]]) -> str:
    """The text that is compared. The system turn is left out: the same everywhere, it would make all rows alike."""
    return " ".join(text for role, text in turns if role != "system")


def turns_of(record: Record) -> list[tuple[str, str]]:
    return [(message["role"], folded(message["content"])) for message in record.messages]


def shingles(text: str) -> np.ndarray:
    """A 64-bit hash of every run of SHINGLE characters, (runs,) uint64, with repetitions; a shorter text is one run."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    runs = max(1, len(characters) - SHINGLE + 1)
    hashes = np.zeros(runs, np.uint64)
    for place in range(min(SHINGLE, len(characters))):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + characters[place : place + runs]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(32))


def similarities(one: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Jaccard of one set with each of the others: the share of the shingles of either that both have, (others,).

    The sets are sorted, without repetitions, and have an element at least.
    """
    sizes = np.array([len(other) for other in others])
    everything = np.concatenate(others)
    places = np.minimum(np.searchsorted(one, everything), len(one) - 1)
    both = np.add.reduceat(one[places] == everything, np.cumsum(sizes) - sizes, dtype=np.int64)
    return both / (len(one) + sizes - both)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, hashes a band): as many hashes a band, so as few vain candidates, as MISSED and MOST_HASHES allow."""
    choices = [(math.ceil(math.log(MISSED) / math.log1p(-(threshold**hashes))), hashes) for hashes in range(1, 9)]
    return [(bands, hashes) for bands, hashes in choices if bands * hashes <= MOST_HASHES][-1]


def band_hashes(texts: list[str], threshold: float | None) -> np.ndarray:
    """(texts, bands) uint32: two texts with an equal one are candidates. No bands without a threshold."""
    if threshold is None:
        return np.empty((len(texts), 0), np.uint32)
    bands, hashes = banding(threshold)
    parts, start, characters = [np.empty((0, bands), np.uint32)], 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= BATCH or end == len(texts):
            parts.append(signed(texts[start:end], bands, hashes))
            start, characters = end, 0
    return np.concatenate(parts)


def signed(texts: list[str], bands: int, hashes: int) -> np.ndarray:
    from rensa import RMinHash

    each = [shingles(text) for text in texts]
    ends = np.cumsum([0, *map(len, each)]).astype(np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(each), ends, bands * hashes, SEED).to_rows()
    digits = np.array(rows, np.uint64).reshape(len(texts), bands, hashes)
    mixed = np.zeros((len(texts), bands), np.uint64)
    for place in range(hashes):
        mixed = (mixed ^ digits[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)
