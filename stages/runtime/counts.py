"""Counts in messages."""


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as `1 row` or `1,130 rows`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")
