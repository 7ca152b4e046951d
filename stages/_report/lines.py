"""The report's table of test rows: how base and tuned did on each, and what they wrote."""

from typing import NamedTuple

from stages._report.parts import NOTHING, difference, number, spread
from stages._report.rows import loss

MOST = 1000  # rows of the page: a browser must still search them while one types
KINDS = {"base": "Base", "tuned": "Tuned", "change": "Change of"}
MEASURES = ("loss", "chrF")  # of each kind


class Line(NamedTuple):
    source: str
    tokens: str
    cells: list[tuple[str, str]]  # (kind, text), the measures of each kind in turn
    worse: bool
    answers: tuple[dict, dict] | None  # the predictions of base and tuned, where an answer was generated


def line(base: dict, tuned: dict, answers: tuple[dict, dict] | None) -> Line:
    texts = [number(loss(base)), number(base["chrf"]), number(loss(tuned)), number(tuned["chrf"])]
    texts += [difference(loss(base), loss(tuned)), difference(base["chrf"], tuned["chrf"])]
    if answers is None:
        texts[1::2] = [NOTHING] * 3
    kinds = [kind for kind in KINDS for _ in MEASURES]
    cells = list(zip(kinds, texts, strict=True))
    return Line(base["source"], number(base["tokens"]), cells, loss(tuned) > loss(base), answers)


def lines(rows: dict[str, list[dict]], generated: list[tuple[dict, dict]]) -> list[Line]:
    """Of at most MOST test rows, evenly spread over them. rows: of base and tuned, the same ones."""
    answers = {base["id"]: (base, tuned) for base, tuned in generated}
    pairs = spread(list(zip(rows["base"], rows["tuned"], strict=True)), MOST)
    return [line(base, tuned, answers.get(base["id"])) for base, tuned in pairs]
