"""What a search for near-duplicates found, held against what was planted and against exact similarities."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bench._clean.rows import THRESHOLD, Planted, shingled
from stages._clean.signatures import similarities
from stages.core.records import Record


class Judged(NamedTuple):
    exact: float  # share of the planted pairs of which not both rows are left
    near: float
    removed: int
    wrongly: int | None  # rows removed that are like no other row


def found_share(planted: list[Planted], removed: set[int]) -> float:
    return sum(not removed.isdisjoint((each.row, each.original)) for each in planted) / len(planted)


def wrongly_removed(records: Iterable[Record], planted: list[Planted], removed: set[int]) -> set[int]:
    """Rows removed to which no row, kept or not, has a similarity of THRESHOLD. Exact, without a comparison of all: a
    row that is so similar to another one shares one of any 1 - THRESHOLD of its shingles with it, and these are the
    rarest ones (prefix filtering, Chaudhuri, Ganti and Kaushik 2006)."""
    known = {number for each in planted for number in (each.row, each.original)}
    sets = [shingled(record) for record in records]
    hashes, rows = np.concatenate(sets), np.repeat(np.arange(len(sets)), list(map(len, sets)))
    order = np.argsort(hashes)
    hashes, rows = hashes[order], rows[order]

    def has_partner(number: int) -> bool:
        one = sets[number]
        begins, ends = np.searchsorted(hashes, one, "left"), np.searchsorted(hashes, one, "right")
        rarest = np.argsort(ends - begins)[: math.floor((1 - THRESHOLD) * len(one) + 1e-6) + 1]
        candidates = np.unique(np.concatenate([rows[begins[place] : ends[place]] for place in rarest]))
        return any(other != number and similarities(one, [sets[other]])[0] >= THRESHOLD for other in candidates)

    return {number for number in removed - known if not has_partner(number)}


def judge(planted: list[Planted], removed: set[int], records: Iterable[Record] | None) -> Judged:
    """`records` None: what is removed wrongly is not looked for, as it takes too long for many rows."""
    by_kind = defaultdict(list)
    for each in planted:
        by_kind[each.kind].append(each)
    wrongly = None if records is None else len(wrongly_removed(records, planted, removed))
    return Judged(found_share(by_kind["exact"], removed), found_share(by_kind["near"], removed), len(removed), wrongly)
