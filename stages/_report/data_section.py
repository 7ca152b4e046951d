"""The report's section on the data: rows read and rejected, their sources, and their lengths."""

from stages._report.layout import Rejects, ReportSection, Table
from stages._report.svg_charts import bucket_labels, histogram
from stages.comparison.number_text import NOTHING, number, share
from stages.core.records import SPLITS

OTHER_SOURCES = "(others)"  # the name that `clean` gives to the sources that it sums
MOST_SOURCES = 20
SOURCE_COUNTS = ("read", *SPLITS, "rejected")  # of each source


def rows_table(clean: dict) -> Table:
    read, rejected = clean["rows"]["read"], clean["rows"]["rejected"]

    def line(name: str, count: int) -> list[str]:
        return [name, number(count), share(count / read) if read else NOTHING]

    rows = [line("Read", read), *(line(f"Rejected: {reason}", rejected[reason]) for reason in sorted(rejected))]
    rows += [line("Kept", clean["rows"]["kept"])]
    rows += [line(f"Split: {name}", clean["splits"][name]) for name in SPLITS]
    return Table("Rows", ["", "Rows", "Share of read"], rows)


def upper_edges(characters: dict) -> dict[str, int]:
    """{bucket: the most characters in it}, shortest first. The last bucket, `longer`, is left out."""
    edges = {name: int(name.removeprefix("to_")) for name in characters["train"] if name != "longer"}
    return dict(sorted(edges.items(), key=lambda item: item[1]))


def lengths_table(characters: dict) -> Table:
    edges = upper_edges(characters)
    rows = [
        [name, *(number(characters[split][bucket]) for split in SPLITS)]
        for bucket, name in zip((*edges, "longer"), bucket_labels([0, *edges.values()]), strict=True)
    ]
    return Table("Conversations by their characters", ["Characters", *map(str.capitalize, SPLITS)], rows)


def sources_table(sources: dict) -> Table:
    """The largest sources by rows read. All others are one line, with those that `clean` had summed already."""
    named = sorted((name for name in sources if name != OTHER_SOURCES), key=lambda name: (-sources[name]["read"], name))
    listed, rest = named[:MOST_SOURCES], [*named[MOST_SOURCES:], *(name for name in sources if name == OTHER_SOURCES)]
    rows = [[name, *(number(sources[name][count]) for count in SOURCE_COUNTS)] for name in listed]
    if rest:
        rows += [[OTHER_SOURCES, *(number(sum(sources[name][count] for name in rest)) for count in SOURCE_COUNTS)]]
    caption = f"Sources, the {MOST_SOURCES} largest" if rest else "Sources"
    return Table(caption, ["", *map(str.capitalize, SOURCE_COUNTS)], rows)


def sampled(clean: dict) -> dict[str, int]:
    """Returns how many rows there are of each kind with samples: by reason if rejected, and those repaired."""
    return clean["rows"]["rejected"] | ({"fixed": clean["fixed"]} if clean["fixed"] else {})


def data_section(clean: dict, rejected: dict) -> ReportSection:
    """The section. clean: metrics/clean.json. rejected: {reason: samples}, from metrics/clean.rejected.json."""
    characters, edges = clean["characters"], upper_edges(clean["characters"])
    counts = {split: [characters[split][bucket] for bucket in (*edges, "longer")] for split in SPLITS}
    title = "Conversations, share of their split"
    chart = histogram("lengths", title, "characters", [0, *edges.values()], counts)
    counts_of = sampled(clean)
    rejects = tuple(Rejects(reason, number(counts_of[reason]), rejected[reason]) for reason in sorted(rejected))
    tables = [rows_table(clean), lengths_table(characters), sources_table(clean["sources"])]
    return ReportSection("Data", "", tables, (chart,), rejects)
