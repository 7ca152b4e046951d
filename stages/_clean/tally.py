"""Counts the rows by reason, split, source and length, and keeps some rows that each rule rejected to show them."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow

from stages._clean.shards import SHOWN_FIXED, JudgedShard
from stages.core.records import SPLITS
from stages.runtime.counts import plural
from stages.runtime.shown import without_private_data

LENGTH_EDGES = (250, 500, 1000, 2000, 4000, 8000, 16000)  # characters: the upper ends of the metrics' buckets
SHOWN_SOURCES = 100  # the sources that are counted one by one
SHOWN_UNREAD = 100  # the columns that are not read and are counted one by one
SHOWN_ROWS = 3  # for each reason
SHOWN_CHARACTERS = 300  # of a rejected row
OUTCOMES = (*SPLITS, "rejected")
MANY_ABSORBED = 20  # near-duplicates of one row: more are rarely copies of it
NAMED = 5  # rows in the line about them


def length_bucket_names() -> list[str]:
    """Returns the buckets' names, which sort as their lengths do."""
    return [*(f"to_{edge:05}" for edge in LENGTH_EDGES), "longer"]


def count_lengths(characters: np.ndarray) -> dict[str, int]:
    """Returns {bucket: number of conversations}.

    Args:
        characters: the length of each conversation.
    """
    places = np.searchsorted(LENGTH_EDGES, characters)
    return dict(zip(length_bucket_names(), np.bincount(places, minlength=len(LENGTH_EDGES) + 1).tolist(), strict=True))


def shortened(messages: list[dict[str, str]]) -> str:
    text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


class Tally:
    """Counts the rows, shard by shard."""

    def __init__(self):
        self.splits: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        self.rejected: Counter[str] = Counter()
        self.sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.characters = {split: np.zeros(len(LENGTH_EDGES) + 1, np.int64) for split in SPLITS}
        self.fixed = 0  # rows whose text was repaired, kept or not
        self.fixed_kinds: Counter[str] = Counter()
        self.fixed_samples: list[dict[str, str]] = []
        self.absorbed: Counter[str] = Counter()  # near-duplicates by the source of the row that stays for them
        self.redacted: Counter[str] = Counter()  # secrets and personal data by kind, in rows kept or not
        self.flaws: Counter[tuple[str, str]] = Counter()  # (repaired or rejected, what was wrong with the turns)
        self.unread: Counter[str] = Counter()  # values by column, or key of a turn, that are not read
        self.samples: defaultdict[str, list[tuple[str, dict]]] = defaultdict(list)

    def keep(self, split: str, characters: np.ndarray) -> None:
        """Counts the rows that a split keeps of a shard, by their lengths."""
        self.splits[split] += len(characters)
        self.characters[split] += list(count_lengths(characters).values())

    def count(self, shard: JudgedShard, outcomes: np.ndarray, sources: list[str]) -> None:
        """Counts the rows of a shard by source.

        Args:
            outcomes: for each row the index of its split in SPLITS, or len(SPLITS) if it is rejected.
            sources: for each row `source:line`.
        """
        self.fixed += shard.fixed
        self.fixed_kinds += shard.fixed_kinds
        samples = [*self.fixed_samples, *shard.fixed_samples]
        self.fixed_samples = sorted(samples, key=lambda sample: (sample["id"], sample["source"]))[:SHOWN_FIXED]
        self.redacted += shard.redacted
        self.flaws += shard.flaws
        self.unread += shard.unread
        names = (source.rpartition(":")[0] for source in sources)
        for (name, outcome), rows in Counter(zip(names, outcomes.tolist(), strict=True)).items():
            self.sources[name][OUTCOMES[outcome]] += rows

    def reject(self, table: pyarrow.Table) -> None:
        """Counts rejected rows by reason. It keeps those with the lowest ids of each reason as samples."""
        reasons, ids = table["reason"].to_pylist(), table["id"].to_pylist()
        self.rejected.update(reasons)
        for place, (reason, record) in enumerate(zip(reasons, ids, strict=True)):
            samples = self.samples[reason]
            if len(samples) < SHOWN_ROWS or record < samples[-1][0]:
                row = table.slice(place, 1).to_pylist()[0]
                sample = {"source": row["source"], "detail": row["detail"], "text": shortened(row["messages"])}
                self.samples[reason] = sorted([*samples, (record, sample)], key=lambda pair: pair[0])[:SHOWN_ROWS]

    def metrics(self) -> dict:
        """Returns the content of metrics/clean.json, without the files' sha256s."""
        kept = self.splits.total()
        rows = {"read": kept + self.rejected.total(), "kept": kept, "rejected": dict(self.rejected)}
        characters = {
            split: dict(zip(length_bucket_names(), counts.tolist(), strict=True))
            for split, counts in self.characters.items()
        }
        repaired = {"absorbed": dict([*self.largest_absorbers().items()][:SHOWN_SOURCES])}
        repaired |= {"fixed": self.fixed, "fixed_kinds": dict(self.fixed_kinds), "redacted": dict(self.redacted)}
        repaired["turn_order"] = {
            kind: {flaw: rows for (of, flaw), rows in self.flaws.items() if of == kind}
            for kind in ("repaired", "rejected")
        }
        most = sorted(self.unread.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN_UNREAD]
        unread: Counter[str] = Counter()
        for name, count in most:  # keys of an object may be addresses
            unread[without_private_data(name)] += count
        repaired["unread"] = dict(unread)
        counts = {"rows": rows, "splits": dict(self.splits), "characters": characters, "sources": self.largest()}
        return counts | repaired

    def largest_absorbers(self) -> dict[str, int]:
        """Returns {source of a row: its near-duplicates} for rows with many, the most first."""
        many = {source: count for source, count in self.absorbed.items() if count > MANY_ABSORBED}
        return dict(sorted(many.items(), key=lambda item: (-item[1], item[0])))

    def absorbed_line(self) -> str | None:
        """Returns a line that names the rows with many near-duplicates, or None if there is none."""
        many = self.largest_absorbers()
        if not many:
            return None
        named = ", ".join(f"{source} for {count}" for source, count in [*many.items()][:NAMED])
        others = f", and {plural(len(many) - NAMED, 'more row')}" if len(many) > NAMED else ""
        return (
            f"clean: more than {MANY_ABSORBED} near-duplicates went for one row: {named}{others}. Look at them in "
            "data/clean/rejected.parquet. If they differ in what matters, raise clean.near_duplicate_threshold"
        )

    def documents(self, split: str) -> list[str]:
        """Returns the sources with rows in a split."""
        return [name for name, outcomes in self.sources.items() if outcomes[split]]

    def largest(self) -> dict[str, dict[str, int]]:
        """Counts the sources with the most rows one by one, and the sum of the others."""
        order = sorted(self.sources, key=lambda name: (-self.sources[name].total(), name))
        counts = {name: self.sources[name] for name in order[:SHOWN_SOURCES]}
        if remaining := order[SHOWN_SOURCES:]:
            counts["(others)"] = sum((self.sources[name] for name in remaining), Counter())
        return {
            name: {"read": outcomes.total()} | {outcome: outcomes[outcome] for outcome in OUTCOMES}
            for name, outcomes in counts.items()
        }

    def rejected_samples(self) -> dict[str, list[dict]]:
        """Returns {reason: some of the rows rejected for it}, and what was repaired in some rows under `fixed`."""
        samples = {reason: [row for _, row in rows] for reason, rows in self.samples.items()}
        if self.fixed:
            samples["fixed"] = [
                {name: sample[name] for name in ("source", "detail", "text")} for sample in self.fixed_samples
            ]
        return samples
