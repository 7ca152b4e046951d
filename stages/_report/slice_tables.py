"""Compares base and tuned by kind of row: by source, by length, and by the fields in evaluate.slices."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stages._report.layout import Table
from stages._report.row_tables import interval_text
from stages.comparison.number_text import change_in_points, number, share, signed_difference
from stages.core.statistics import (
    SLICE_LENGTHS,
    all_measures,
    changes_with_intervals,
    columns_of,
    length_name,
    renumbered_clusters,
    rows_by_slice,
)

NAMES = {"length": "length of the answer"}
LENGTH_LABELS = {length_name(edge): f"up to {edge} tokens" for edge in SLICE_LENGTHS}
LENGTH_LABELS |= {length_name(SLICE_LENGTHS[-1] + 1): f"more than {SLICE_LENGTHS[-1]} tokens"}


class SliceMeasure(NamedTuple):
    """A measure that is compared by kind of row. counts: {column: title} of the sums that each line has too."""

    name: str
    label: str
    counts: dict[str, str]
    show: Callable[[float], str]
    change: Callable[[float, float], str]
    scale: float


LOSS = SliceMeasure("loss", "Loss", {"tokens": "Tokens"}, number, signed_difference, 1)
PASSED = SliceMeasure(
    "pass_at_1", "Answers that pass their tests", {"tested": "With tests"}, share, change_in_points, 100
)


def slice_tables(base: list[dict], tuned: list[dict]) -> list[Table]:
    shown = [LOSS, *([PASSED] if any(row["tested"] for row in base) else [])]
    return [slice_table(base, tuned, name, kind) for kind in shown for name in base[0]["slices"]]


def slice_table(base: list[dict], tuned: list[dict], slice_name: str, measure: SliceMeasure) -> Table:
    """One line for each value of the slice, with the interval of tuned − base where there are enough rows."""
    places = rows_by_slice(base, slice_name)
    if slice_name == "length":
        places = {LENGTH_LABELS[value]: places[value] for value in LENGTH_LABELS if value in places}
    lines = []
    for label, members in places.items():
        rows = [base[place] for place in members]
        before, after = columns_of(rows), columns_of([tuned[place] for place in members])
        first, second = all_measures(before)[measure.name], all_measures(after)[measure.name]
        if np.isnan(first) or np.isnan(second):
            continue
        draws = renumbered_clusters(np.array([row["cluster"] for row in rows]))
        interval = interval_text(changes_with_intervals(before, after, draws), measure.name, measure.scale)
        counts = [len(rows), *(int(before[column].sum()) for column in measure.counts)]
        values = [measure.show(first), measure.show(second), measure.change(first, second), interval]
        lines.append([label, *map(number, counts), *values])
    header = ["", "Rows", *measure.counts.values(), "Base", "Tuned", "Change", "95 % interval"]
    distinct = len({row["slices"][slice_name] for row in base})
    cut = f", the {len(places)} of {number(distinct)} with the most tokens" if len(places) < distinct else ""
    return Table(f"{measure.label} by {NAMES.get(slice_name, slice_name)}{cut}", header, lines)
