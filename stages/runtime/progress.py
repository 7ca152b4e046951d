"""Shows the progress of long work: as a bar on a terminal, as a line every LINE_SECONDS in a log."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE_SECONDS = 20.0


class Progress:
    """Counts up to `total`. `unit` follows the numbers, such as " rows"."""

    def __init__(self, label: str, total: int, unit: str):
        from tqdm import tqdm

        self.label, self.total, self.unit = label, total, unit
        self.done, self.started = 0, time.monotonic()
        self.printed = self.started
        has_bar = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"  # only the first of several processes
        self.bar = tqdm(total=total, desc=label, unit=unit, leave=False, disable=not has_bar)

    def advance(self, count: int = 1, **figures: str) -> None:
        """Adds `count` and shows `figures`, such as loss="2.50", next to it."""
        self.done += count
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.started) / self.done * (self.total - self.done)
            details = "".join(f", {name} {value}" for name, value in figures.items())
            print(f"{self.label}: {self.done} of {self.total}{self.unit}{details}, {left:.0f} s to go", flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """Gives a Progress and removes its bar at the end."""
    counter = Progress(label, total, unit)
    try:
        yield counter
    finally:
        counter.bar.close()
