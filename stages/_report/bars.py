"""A histogram: where its bars stand in an SVG that report.html.j2 draws."""

from stages._report import charts
from stages._report.charts import LEFT, Bar, Bars, Chart, Tick, key_width, label, ticks

ACROSS, BASELINE = charts.WIDTH - LEFT - charts.RIGHT, charts.HEIGHT - charts.BOTTOM  # pixels
STYLES = ("first", "second", "third")


def bucket_names(edges: list[int]) -> list[str]:
    """edges: the left ends, from 0 on; the last bucket is open."""
    ranges = [f"{low + 1:,} to {high:,}" for low, high in zip(edges[1:], edges[2:], strict=False)]
    return [f"up to {edges[1]:,}", *ranges, f"more than {edges[-1]:,}"]


def height_of(value: float, highest: float) -> float:
    """Pixels; what is there must be seen, however little it is."""
    return max(value / highest * (BASELINE - charts.TOP), 1.0) if value else 0.0


def histogram(key: str, title: str, x_name: str, edges: list[int], series: dict[str, list[int]]) -> Chart:
    """A chart of up to three series side by side, each in shares of its own sum, since one may be small.

    edges: the left end of each bucket; the last one is open. series: how many are in each bucket.
    """
    shares = {name: [count / (sum(counts) or 1) for count in counts] for name, counts in series.items()}
    most = max(map(max, shares.values()))
    if not most:
        return Chart(key, title, x_name, "Nothing was counted.", [], [], [])
    y_values = ticks(0.0, most, 5)
    room = ACROSS / len(edges)
    width = 0.8 * room / len(series)
    names = bucket_names(edges)
    found, key_at = [], LEFT
    for place, (name, values) in enumerate(shares.items()):
        bars = []
        for bucket, value in enumerate(values):
            left, height = LEFT + (bucket + 0.1) * room + place * width, height_of(value, y_values[-1])
            sides = (round(each, 1) for each in (left, BASELINE - height, width, height))
            bars.append(Bar(*sides, f"{name}, {names[bucket]} {x_name}: {series[name][bucket]:,} ({value:.1%})"))
        found.append(Bars(name, STYLES[place], bars, key_at))
        key_at += key_width(name)
    peaks = [f"{name}: most often {names[values.index(max(values))]}." for name, values in shares.items()]
    return Chart(
        *(key, title, x_name, " ".join(peaks)),
        x_ticks=[Tick(round(LEFT + bucket * room, 1), f"{edge:,}") for bucket, edge in enumerate(edges)],
        y_ticks=[
            Tick(round(BASELINE - height_of(y, y_values[-1]), 1), f"{label(100 * y, 100 * y_values[1])}%")
            for y in y_values
        ],
        lines=[],
        bars=found,
    )
