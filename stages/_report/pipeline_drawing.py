"""Draws the pipeline: positions of stages and arrows in an SVG of times.html.j2."""

from typing import NamedTuple

from stages.comparison.number_text import NOTHING, duration

DRAWING_WIDTH = 440  # like a chart's: legible at a phone's width
BOX, HIGH, ROW = 150, 42, 64  # pixels: width and height of a stage's box, distance of two rows
LEFT_CENTRE, RIGHT_CENTRE, MIDDLE_CENTRE = 77, 317, 197  # the boxes' centres

# {stage: (centre, row)}
PLACES = {
    "download_model": (LEFT_CENTRE, 0),
    "download_data": (RIGHT_CENTRE, 0),
    "clean": (RIGHT_CENTRE, 1),
    "tokenize": (RIGHT_CENTRE, 2),
    "train": (RIGHT_CENTRE, 3),
    "merge": (RIGHT_CENTRE, 4),
    "evaluate@base": (LEFT_CENTRE, 5),
    "evaluate@tuned": (RIGHT_CENTRE, 5),
    "report": (MIDDLE_CENTRE, 6),
}
# Only direct lines: train needs the base too, but a way through tokenize leads there.
LINES = (
    ("download_model", "tokenize"),
    ("download_model", "evaluate@base"),
    ("download_data", "clean"),
    ("clean", "tokenize"),
    ("clean", "evaluate@base"),
    ("tokenize", "train"),
    ("train", "merge"),
    ("merge", "evaluate@tuned"),
    ("evaluate@base", "report"),
    ("evaluate@tuned", "report"),
)


class Box(NamedTuple):
    name: str
    time: str
    left: float
    top: float


class Arrow(NamedTuple):
    path: str
    head: str  # points of a polygon


class Drawing(NamedTuple):
    boxes: list[Box]
    arrows: list[Arrow]
    description: str
    width: int = DRAWING_WIDTH
    height: int = (ROW * 6) + HIGH + 4
    box: int = BOX
    high: int = HIGH


def arrow_down(start: tuple[float, float], end: tuple[float, float]) -> Arrow:
    """An arrow from the bottom of a box to the top of another."""
    (x, y), (to_x, to_y) = start, end
    middle = (y + to_y) / 2
    return Arrow(
        f"M{x} {y} C{x} {middle} {to_x} {middle} {to_x} {to_y - 6}",
        f"{to_x},{to_y} {to_x - 4},{to_y - 8} {to_x + 4},{to_y - 8}",
    )


def arrow(source: str, target: str) -> Arrow:
    (x, row), (to_x, to_row) = PLACES[source], PLACES[target]
    top, bottom = ROW * to_row + 2, ROW * row + HIGH + 2
    if x == to_x or target == "report":
        return arrow_down((x, bottom), (to_x, top))
    if x < to_x:  # into the box's side, past the boxes above it
        side, middle = to_x - BOX / 2, top + HIGH / 2
        return Arrow(
            f"M{x + 40} {bottom} C{x + 40} {middle} {side - 30} {middle} {side - 6} {middle}",
            f"{side},{middle} {side - 8},{middle - 4} {side - 8},{middle + 4}",
        )
    side, middle = x - BOX / 2, ROW * row + HIGH / 2 + 2  # out of the box's side, past the boxes below it
    to_x += 40
    return Arrow(
        f"M{side} {middle} C{side - 30} {middle} {to_x} {middle + ROW} {to_x} {top - 6}",
        f"{to_x},{top} {to_x - 4},{top - 8} {to_x + 4},{top - 8}",
    )


def drawing(timing: dict[str, dict]) -> Drawing:
    """The drawing with each stage's time. timing: {stage: its timing file}, without stages that did not run here."""
    times = {stage: duration(timing[stage]["seconds"]) if stage in timing else NOTHING for stage in PLACES}
    boxes = [Box(stage, times[stage], x - BOX / 2, ROW * row + 2) for stage, (x, row) in PLACES.items()]
    told = ", ".join(f"{stage} {time}" for stage, time in times.items() if stage in timing)
    return Drawing(boxes, [arrow(*line) for line in LINES], f"The stages from top to bottom, with their times: {told}.")
