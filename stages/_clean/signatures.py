"""Computes what duplicates are found by: a conversation's fingerprint, its shingles, and hashes of the shingles.

The hashes are MinHash (Broder 1997) in bands: similar texts are likely to have the hash of a band in common.
"""

import hashlib
import math
import unicodedata

import numpy as np

from stages.core.records import Record

SHINGLE = 5  # characters, so few that a renamed variable or two swapped lines leave most shingles unchanged
HASH_SEED = 42  # of the hash functions: it decides which pairs are compared, not how a comparison ends
MISSED = 1e-4  # at most this share of the pairs exactly at the threshold is never compared
MOST_HASHES = 256
BATCH_CHARACTERS = 1 << 20  # the characters whose shingles are in memory at one time


def folded(text: str) -> str:
    """Removes differences that nobody sees: in whitespace and among compatible characters (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def conversation_fingerprint(turns: list[tuple[str, str]]) -> bytes:
    """Hashes (role, folded text) pairs, so that only conversations that folded() makes equal have the same hash."""
    return hashlib.sha256("\x1e".join(f"{role}\x1f{text}" for role, text in turns).encode()).hexdigest()[:32].encode()


def compared_text(turns: list[tuple[str, str]]) -> str:
    """Joins the texts of all turns but the system's: a prompt that all rows share would make all rows similar."""
    return " ".join(text for role, text in turns if role != "system")


def turns_of(record: Record) -> list[tuple[str, str]]:
    """Returns (role, folded text) for each turn."""
    return [(message["role"], folded(message["content"])) for message in record.messages]


def shingles(text: str) -> np.ndarray:
    """Hashes every run of SHINGLE characters: (runs,) uint64, with repetitions. A shorter text is one run."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    runs = max(1, len(characters) - SHINGLE + 1)
    hashes = np.zeros(runs, np.uint64)
    for place in range(min(SHINGLE, len(characters))):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + characters[place : place + runs]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(32))


def similarities(query: np.ndarray, candidates: list[np.ndarray]) -> np.ndarray:
    """Returns the Jaccard similarity of `query` with each candidate, (candidates,): their common share of shingles.

    Args:
        query: a set of shingles as a sorted array without repetitions and with at least one element.
        candidates: such sets.
    """
    sizes = np.array([len(candidate) for candidate in candidates])
    everything = np.concatenate(candidates)
    places = np.minimum(np.searchsorted(query, everything), len(query) - 1)
    both = np.add.reduceat(query[places] == everything, np.cumsum(sizes) - sizes, dtype=np.int64)
    return both / (len(query) + sizes - both)


def banding(threshold: float) -> tuple[int, int]:
    """Returns (bands, hashes a band): as many hashes a band as MISSED and MOST_HASHES allow.

    More hashes a band give fewer candidates that turn out not to be similar.
    """
    choices = [(math.ceil(math.log(MISSED) / math.log1p(-(threshold**hashes))), hashes) for hashes in range(1, 9)]
    return [(bands, hashes) for bands, hashes in choices if bands * hashes <= MOST_HASHES][-1]


def band_hashes(texts: list[str], threshold: float | None) -> np.ndarray:
    """Returns (texts, bands) uint32. Two texts with the same hash in a band are candidates. No threshold: no bands."""
    if threshold is None:
        return np.empty((len(texts), 0), np.uint32)
    bands, hashes = banding(threshold)
    parts, start, characters = [np.empty((0, bands), np.uint32)], 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= BATCH_CHARACTERS or end == len(texts):
            parts.append(hash_batch(texts[start:end], bands, hashes))
            start, characters = end, 0
    return np.concatenate(parts)


def hash_batch(texts: list[str], bands: int, hashes: int) -> np.ndarray:
    """Returns band_hashes() of a batch."""
    from rensa import RMinHash

    tokens = [shingles(text) for text in texts]
    ends = np.cumsum([0, *map(len, tokens)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(tokens), ends, bands * hashes, HASH_SEED)
    digests = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), bands, hashes)
    mixed = np.zeros((len(texts), bands), np.uint64)
    for place in range(hashes):
        mixed = (mixed ^ digests[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)
