"""What a search for near-duplicates found, held against what was planted and against exact similarities."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from bench._clean.rows import THRESHOLD, Planted, shingled
from stages._clean.duplicates import similarity
from stages.shared.records import Record


class Judged(NamedTuple):
    exact: float  # share of the planted pairs of which not both rows are left
    near: float
    removed: int
    wrongly: int | None  # rows removed that are like no other row


def found_share(planted: list[Planted], removed: set[int]) -> float:
    return sum(not removed.isdisjoint((each.row, each.original)) for each in planted) / len(planted)


def wrongly_removed(records: Iterable[Record], planted: list[Planted], removed: set[int]) -> set[int]:
    """Rows removed to which no row, kept or not, has a similarity of THRESHOLD, each of them looked at."""
    known = {number for each in planted for number in (each.row, each.original)}
    records = list(records)
    sets = {number: shingled(records[number]) for number in removed - known}
    for number, record in enumerate(records):
        if not sets:
            break
        other = shingled(record)
        alike = [
            place
            for place, one in sets.items()
            # The smaller one's share of the larger one bounds the similarity.
            if place != number
            and min(len(one), len(other)) >= THRESHOLD * max(len(one), len(other))
            and similarity(one, other) >= THRESHOLD
        ]
        for place in alike:
            del sets[place]
    return set(sets)


def judge(planted: list[Planted], removed: set[int], records: Iterable[Record] | None) -> Judged:
    """`records` None: what is removed wrongly is not looked for, as it takes too long for many rows."""
    by_kind = defaultdict(list)
    for each in planted:
        by_kind[each.kind].append(each)
    wrongly = None if records is None else len(wrongly_removed(records, planted, removed))
    return Judged(found_share(by_kind["exact"], removed), found_share(by_kind["near"], removed), len(removed), wrongly)
