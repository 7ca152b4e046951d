"""Rows of like length together."""


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices, longest first, in groups of `size`: rows of like length waste little padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
