"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 20.0  # seconds between two lines in a log


class Progress:
    """Counts up to `total`; `advance` says how far it has come and shows `figures` beside it."""

    def __init__(self, label: str, total: int, unit: str):
        from tqdm import tqdm

        self.label, self.total, self.unit = label, total, unit
        self.done, self.started = 0, time.monotonic()
        self.printed = self.started
        shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"  # of several processes the first shows it
        self.bar = tqdm(total=total, desc=label, unit=unit, leave=False, disable=not shown)

    def advance(self, count: int = 1, **figures: str) -> None:
        self.done += count
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.printed >= EVERY:
            self.printed = now
            left = (now - self.started) / self.done * (self.total - self.done)
            shown = "".join(f", {name} {value}" for name, value in figures.items())
            print(f"{self.label}: {self.done} of {self.total}{self.unit}{shown}, {left:.0f} s to go", flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    shown = Progress(label, total, unit)
    try:
        yield shown
    finally:
        shown.bar.close()
