"""The parts that the report's sections consist of: tables, charts and samples."""

from typing import NamedTuple

from stages._report.svg_charts import Chart


class Table(NamedTuple):
    caption: str
    header: list[str]
    rows: list[list[str]]


class ReportSection(NamedTuple):
    title: str
    note: str
    tables: list[Table]
    charts: tuple[Chart, ...] = ()
    rejects: tuple["Rejects", ...] = ()


class Rejects(NamedTuple):
    """Rows that `clean` rejected for one reason: how many, and {source, detail, text} of some."""

    reason: str
    rows: str
    samples: list[dict[str, str]]


def spread(items: list, most: int) -> list:
    """At most `most` of the items, in order and evenly spread."""
    chosen = min(most, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * chosen)] for place in range(chosen)]
