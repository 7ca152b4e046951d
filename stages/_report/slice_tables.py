"""Base against tuned by kind of row: by source, by length, and by the fields that evaluate.slices names."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stages._report.layout import Table
from stages._report.row_tables import interval
from stages.comparison.number_text import difference, number, points, share
from stages.core.statistics import LENGTHS, changed, columns_of, draws_of, kinds, length_name, measured

NAMES = {"length": "length of the answer"}
LENGTH_LABELS = {length_name(edge): f"up to {edge} tokens" for edge in LENGTHS}
LENGTH_LABELS |= {length_name(LENGTHS[-1] + 1): f"more than {LENGTHS[-1]} tokens"}


class Kind(NamedTuple):
    """A measure by kind of row. counts: columns whose sums stand beside the rows."""

    measure: str
    label: str
    counts: dict[str, str]
    show: Callable[[float], str]
    change: Callable[[float, float], str]
    scale: float


LOSS = Kind("loss", "Loss", {"tokens": "Tokens"}, number, difference, 1)
PASSED = Kind("pass_at_1", "Answers that pass their tests", {"tested": "With tests"}, share, points, 100)


def slice_tables(base: list[dict], tuned: list[dict]) -> list[Table]:
    shown = [LOSS, *([PASSED] if any(row["tested"] for row in base) else [])]
    return [slice_table(base, tuned, name, kind) for kind in shown for name in base[0]["slices"]]


def slice_table(base: list[dict], tuned: list[dict], name: str, kind: Kind) -> Table:
    """A line for each value of the slice, with the interval of tuned − base in pairs where there are rows enough."""
    places = kinds(base, name)
    if name == "length":
        places = {LENGTH_LABELS[value]: places[value] for value in LENGTH_LABELS if value in places}
    lines = []
    for label, some in places.items():
        rows = [base[place] for place in some]
        before, after = columns_of(rows), columns_of([tuned[place] for place in some])
        one, other = measured(before)[kind.measure], measured(after)[kind.measure]
        if np.isnan(one) or np.isnan(other):
            continue
        draws = draws_of(np.array([row["cluster"] for row in rows]))
        sure = interval(changed(before, after, draws), kind.measure, kind.scale)
        counts = [len(rows), *(int(before[column].sum()) for column in kind.counts)]
        lines.append([label, *map(number, counts), kind.show(one), kind.show(other), kind.change(one, other), sure])
    header = ["", "Rows", *kind.counts.values(), "Base", "Tuned", "Change", "95 % interval"]
    values = len({row["slices"][name] for row in base})
    cut = f", the {len(places)} of {number(values)} with the most tokens" if len(places) < values else ""
    return Table(f"{kind.label} by {NAMES.get(name, name)}{cut}", header, lines)
