"""Numbers as people write them: counts, shares, sizes, durations and differences."""

NOTHING = "–"


def number(value: float | None) -> str:
    """A count in full, or a measurement to four digits."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def share(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}%}"


def size(count: float | None) -> str:
    """Bytes in the decimal units that disks and hubs use."""
    if count is None:
        return NOTHING
    power = min(4, (len(str(round(count))) - 1) // 3)
    value, unit = count / 1000**power, ("B", "kB", "MB", "GB", "TB")[power]
    return f"{value:.0f} {unit}" if value >= 100 or not power else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def ratio(large: float | None, small: float | None) -> str:
    return f"{large / small:,.1f}×" if large and small else NOTHING


def with_sign(text: str) -> str:
    """A number's text with + or a real minus sign, which is as wide as the plus."""
    return text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"


def relative_change(before: float, after: float) -> str:
    return with_sign(f"{(after - before) / before:.1%}") if before else NOTHING


def signed_difference(before: float, after: float) -> str:
    return with_sign(number(after - before))


def change_in_points(before: float, after: float) -> str:
    return f"{with_sign(f'{100 * (after - before):.1f}')} points"
