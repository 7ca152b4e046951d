"""Counts in messages."""


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as `1 row` or `1,130 rows`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def listed_counts(label: str, counts: dict[str, int], most: int = 5) -> str:
    """The largest counts by name, such as `; not read: id (20), category (7) and 2 more`, or "" without any."""
    if not counts:
        return ""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    shown = ", ".join(f"{name or repr(name)} ({counts[name]:,})" for name in order[:most])
    return f"; {label}: {shown}" + (f" and {len(order) - most:,} more" if len(order) > most else "")
