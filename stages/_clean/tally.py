"""What is counted and shown of the rows: by reason, split, source and length, and some of what each rule rejected."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow

from stages._clean.shards import Shard
from stages.core.records import SPLITS

LENGTHS = (250, 500, 1000, 2000, 4000, 8000, 16000)  # characters: where the metrics' buckets end
SOURCES = 100  # that are counted one by one
SAMPLES = 3  # rejected rows that are shown for each reason
SHOWN = 300  # characters of such a row
OUTCOMES = (*SPLITS, "rejected")


def bucket_names() -> list[str]:
    """They sort as the numbers do."""
    return [*(f"to_{edge:05}" for edge in LENGTHS), "longer"]


def lengths(characters: np.ndarray) -> dict[str, int]:
    """How many conversations have up to so many characters."""
    places = np.searchsorted(LENGTHS, characters)
    return dict(zip(bucket_names(), np.bincount(places, minlength=len(LENGTHS) + 1).tolist(), strict=True))


def shortened(messages: list[dict[str, str]]) -> str:
    text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


class Tally:
    def __init__(self):
        self.splits: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        self.rejected: Counter[str] = Counter()
        self.sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.characters = {split: np.zeros(len(LENGTHS) + 1, np.int64) for split in SPLITS}
        self.fixed = 0  # rows, kept or not, in which the text was repaired
        self.redacted: Counter[str] = Counter()  # secrets and personal data taken out, by kind, of rows kept or not
        self.samples: defaultdict[str, list[tuple[str, dict]]] = defaultdict(list)

    def keep(self, split: str, characters: np.ndarray) -> None:
        self.splits[split] += len(characters)
        self.characters[split] += list(lengths(characters).values())

    def count(self, shard: Shard, outcomes: np.ndarray, sources: list[str]) -> None:
        """An outcome is the place of a split in SPLITS, or one more; a source's name stands before the line number."""
        self.fixed += shard.fixed
        self.redacted += shard.redacted
        names = (source.rpartition(":")[0] for source in sources)
        for (name, outcome), rows in Counter(zip(names, outcomes.tolist(), strict=True)).items():
            self.sources[name][OUTCOMES[outcome]] += rows

    def reject(self, table: pyarrow.Table) -> None:
        """Counts them by reason, and of each reason keeps those with the lowest ids to show: as good as any three."""
        reasons, ids = table["reason"].to_pylist(), table["id"].to_pylist()
        self.rejected.update(reasons)
        for place, (reason, record) in enumerate(zip(reasons, ids, strict=True)):
            chosen = self.samples[reason]
            if len(chosen) < SAMPLES or record < chosen[-1][0]:
                row = table.slice(place, 1).to_pylist()[0]
                shown = {"source": row["source"], "detail": row["detail"], "text": shortened(row["messages"])}
                self.samples[reason] = sorted([*chosen, (record, shown)], key=lambda each: each[0])[:SAMPLES]

    def metrics(self) -> dict:
        kept = self.splits.total()
        rows = {"read": kept + self.rejected.total(), "kept": kept, "rejected": dict(self.rejected)}
        characters = {
            split: dict(zip(bucket_names(), counts.tolist(), strict=True)) for split, counts in self.characters.items()
        }
        repaired = {"fixed": self.fixed, "redacted": dict(self.redacted)}
        counts = {"rows": rows, "splits": dict(self.splits), "characters": characters, "sources": self.largest()}
        return counts | repaired

    def largest(self) -> dict[str, dict[str, int]]:
        """The sources with the most rows, and the sum of the others."""
        order = sorted(self.sources, key=lambda name: (-self.sources[name].total(), name))
        counts = {name: self.sources[name] for name in order[:SOURCES]}
        if others := order[SOURCES:]:
            counts["(others)"] = sum((self.sources[name] for name in others), Counter())
        return {
            name: {"read": each.total()} | {outcome: each[outcome] for outcome in OUTCOMES}
            for name, each in counts.items()
        }

    def shown(self) -> dict[str, list[dict]]:
        return {reason: [row for _, row in rows] for reason, rows in self.samples.items()}
