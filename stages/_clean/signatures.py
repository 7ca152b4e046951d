"""Computes what duplicates are found by: a conversation's fingerprint, its shingles, and hashes of the shingles.

The hashes are MinHash (Broder 1997) in bands: similar texts are likely to have the hash of a band in common.
"""

import hashlib
import json
import math
import unicodedata

import numpy as np

from stages.core.records import TRAINED_ROLES, Record

SHINGLE = 5  # characters, so few that a renamed variable or two swapped lines leave most shingles unchanged
HASH_SEED = 42  # of the hash functions: it decides which pairs are compared, not how a comparison ends
MISSED = 1e-4  # at most this share of the pairs exactly at the threshold is never compared
MOST_HASHES = 256
# What begins a turn in the compared text: one to answer to, or one that is trained. Folded text has neither.
PROMPT, ANSWER = "\x1d", "\x1e"
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def folded(text: str) -> str:
    """Removes differences that nobody sees: in whitespace, and between spellings of one character (NFC).

    Compatible characters stay apart (no NFKC), because 2³ is not 23.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def conversation_fingerprint(turns: list[tuple[str, str]]) -> bytes:
    """Hashes (role, folded text) pairs, so that only conversations that folded() makes equal have the same hash."""
    return hashlib.sha256("\x1e".join(f"{role}\x1f{text}" for role, text in turns).encode()).hexdigest()[:32].encode()


def compared_text(turns: list[tuple[str, str]]) -> str:
    """Joins the texts of all turns. PROMPT or ANSWER begins each."""
    return "".join(f"{ANSWER if role in TRAINED_ROLES else PROMPT}{text}" for role, text in turns)


def plain_text(text: str) -> str:
    """Returns what compared_text() joined, with blanks between the turns."""
    return text[1:].replace(PROMPT, " ").replace(ANSWER, " ")


def turns_of(record: Record) -> list[tuple[str, str]]:
    """Returns (role, folded text) for each turn. What else a turn says, such as the calls of tools, is added as JSON.

    Numbers and booleans, such as the weight of a turn, say nothing that a reader sees.
    """
    turns = []
    for message in record.messages:
        text = message.get("content") or ""
        rest = {key: value for key, value in message.items() if isinstance(value, str | list | dict) and value}
        rest = {key: value for key, value in rest.items() if key not in ("role", "content")}
        if rest:
            text = f"{text}\n{json.dumps(rest, ensure_ascii=False, sort_keys=True)}"
        turns.append((message["role"], folded(text)))
    return turns


def characters_of(text: str) -> np.ndarray:
    """Returns the code of each character, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Spreads hashes over all bits, in place."""
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    return hashes


def shingles(text: str | np.ndarray, width: int = SHINGLE) -> np.ndarray:
    """Hashes every run of `width` characters: (runs,) uint64, with repetitions. A shorter text is one run."""
    characters = (characters_of(text) if isinstance(text, str) else text).astype(np.uint64)
    runs = max(1, len(characters) - width + 1)
    hashes = np.zeros(runs, np.uint64)
    for place in range(min(width, len(characters))):
        hashes = hashes * HASH_FACTOR + characters[place : place + runs]
    return mixed(hashes)


def without_repetitions(hashes: np.ndarray) -> np.ndarray:
    """Returns what np.unique() does, in less time."""
    hashes = np.sort(hashes)
    return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])] if len(hashes) else hashes


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


def band_hashes(runs: np.ndarray, ends: np.ndarray, threshold: float) -> np.ndarray:
    """Returns (texts, bands) uint32. Two texts with the same hash in a band are candidates.

    Args:
        runs: the shingles of all texts, one text after the other.
        ends: for each text where its shingles end.
    """
    from rensa import RMinHash

    bands, hashes = banding(threshold)
    bounds = np.concatenate([[0], ends]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs, bounds, bands * hashes, HASH_SEED)
    digests = np.array(matrix.to_rows(), np.uint64).reshape(len(ends), bands, hashes)
    together = np.zeros((len(ends), bands), np.uint64)
    for place in range(hashes):
        together = (together ^ digests[:, :, place]) * HASH_FACTOR
        together ^= together >> np.uint64(29)
    return (together >> np.uint64(32)).astype(np.uint32)
