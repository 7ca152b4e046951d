"""The geometry of line charts and histograms: ticks, lines, points and bars in an SVG of report.html.j2."""

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

Point = tuple[float, float]

# Small on purpose: at a phone's width the page shows it at nearly its own size, so its text stays legible.
WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 44, 42
ACROSS, BASELINE = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM  # pixels
MOST_POINTS = 300
STYLES = ("first", "second", "third")  # CSS classes of a histogram's series


class Tick(NamedTuple):
    at: float
    label: str


class CurveLine(NamedTuple):
    name: str
    style: str  # the CSS class that gives it its colour
    path: str  # points of an SVG polyline
    dots: list[tuple[float, float]]
    key_at: float  # where its entry in the legend begins


class Bar(NamedTuple):
    left: float
    top: float
    width: float
    height: float
    text: str


class Bars(NamedTuple):
    name: str
    style: str
    bars: list[Bar]
    key_at: float


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    x_name: str
    description: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[CurveLine]
    bars: list[Bars] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def tick_label(value: float, step: float) -> str:
    """A tick's text, with enough digits to differ from its neighbours."""
    if value == 0:
        return "0"
    if step >= 1e4 and value >= 1e5:
        return f"{value / 1e3:,.0f}k"
    if step < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}"


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`. Steps are 1, 2 or 5 times a power of ten.

    Args:
        most: The most steps.
        whole: Whether steps are at least 1.
    """
    if high <= low:
        padding = max(abs(low) * 0.1, 1.0 if whole else 1e-6)
        low, high = (max(0.0, low - padding) if low >= 0 else low - padding), high + padding
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of its neighbours, so that a long run makes no heavy page."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def key_width(name: str) -> int:
    """Pixels of a name's entry in the legend."""
    return 36 + 7 * len(name)


def describe_curves(series: dict[str, list[Point]], x_name: str) -> str:
    """The curves in words, for a reader who cannot see them."""
    parts = [
        f"{name}: {points[0][1]:.4g} at {x_name} {points[0][0]:g}, {points[-1][1]:.4g} at {x_name} {points[-1][0]:g}, "
        f"lowest {min(y for _, y in points):.4g}."
        for name, points in series.items()
        if points
    ]
    return " ".join(parts) or "No point was recorded."


def line_chart(key: str, title: str, series: dict[str, list[Point]], styles: list[str], zero: bool = False) -> Chart:
    """A chart of each named series over the steps. zero: whether the vertical axis begins at 0."""
    drawn = {name: thinned(points) for name, points in series.items() if points}
    everything = [point for points in drawn.values() for point in points]
    if not everything:
        return Chart(key, title, "step", describe_curves(series, "step"), [], [], [])
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    x_values = ticks(min(xs), max(xs), 6, whole=True)
    y_values = ticks(0.0 if zero else min(ys), max(ys), 5)

    def across(x: float) -> float:
        return round(LEFT + (x - x_values[0]) / (x_values[-1] - x_values[0]) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        share = (y - y_values[0]) / (y_values[-1] - y_values[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    lines, key_at = [], LEFT
    for name, style in zip(series, styles, strict=True):
        if name in drawn:
            places = [(across(x), down(y)) for x, y in drawn[name]]
            path = " ".join(f"{x},{y}" for x, y in places)
            # Few points are shown as dots too; many are only a line.
            lines.append(CurveLine(name, style, path, places if len(places) <= 30 else [], key_at))
            key_at += key_width(name)
    x_step, y_step = x_values[1] - x_values[0], y_values[1] - y_values[0]
    return Chart(
        *(key, title, "step", describe_curves(series, "step")),
        x_ticks=[Tick(across(x), tick_label(x, x_step)) for x in x_values],
        y_ticks=[Tick(down(y), tick_label(y, y_step)) for y in y_values],
        lines=lines,
    )


def bucket_labels(edges: list[int]) -> list[str]:
    """The buckets in words. edges: their left ends, from 0 on; the last bucket is open."""
    ranges = [f"{low + 1:,} to {high:,}" for low, high in zip(edges[1:], edges[2:], strict=False)]
    return [f"up to {edges[1]:,}", *ranges, f"more than {edges[-1]:,}"]


def height_of(value: float, highest: float) -> float:
    """A bar's height in pixels. Even a tiny value is one pixel high, so that it can be seen."""
    return max(value / highest * (BASELINE - TOP), 1.0) if value else 0.0


def histogram(key: str, title: str, x_name: str, edges: list[int], series: dict[str, list[int]]) -> Chart:
    """A chart of up to three series side by side. Each is in shares of its own sum, since one may be small.

    Args:
        edges: The left end of each bucket; the last bucket is open.
        series: How many are in each bucket, by the series' name.
    """
    shares = {name: [count / (sum(counts) or 1) for count in counts] for name, counts in series.items()}
    most = max(map(max, shares.values()))
    if not most:
        return Chart(key, title, x_name, "Nothing was counted.", [], [], [])
    y_values = ticks(0.0, most, 5)
    room = ACROSS / len(edges)
    width = 0.8 * room / len(series)
    names = bucket_labels(edges)
    drawn, key_at = [], LEFT
    for place, (name, values) in enumerate(shares.items()):
        bars = []
        for bucket, value in enumerate(values):
            left, height = LEFT + (bucket + 0.1) * room + place * width, height_of(value, y_values[-1])
            sides = (round(length, 1) for length in (left, BASELINE - height, width, height))
            bars.append(Bar(*sides, f"{name}, {names[bucket]} {x_name}: {series[name][bucket]:,} ({value:.1%})"))
        drawn.append(Bars(name, STYLES[place], bars, key_at))
        key_at += key_width(name)
    peaks = [f"{name}: most often {names[values.index(max(values))]}." for name, values in shares.items()]
    return Chart(
        *(key, title, x_name, " ".join(peaks)),
        x_ticks=[Tick(round(LEFT + bucket * room, 1), f"{edge:,}") for bucket, edge in enumerate(edges)],
        y_ticks=[
            Tick(round(BASELINE - height_of(y, y_values[-1]), 1), f"{tick_label(100 * y, 100 * y_values[1])}%")
            for y in y_values
        ],
        lines=[],
        bars=drawn,
    )
