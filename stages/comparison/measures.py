"""The measures of an evaluation, with their labels and as people write them."""

from collections.abc import Callable
from typing import NamedTuple

from stages.comparison.number_text import difference, number, points, relative, share


class Measure(NamedTuple):
    name: str
    label: str
    show: Callable[[float | None], str]
    change: Callable[[float, float], str]
    lower_is_better: bool
    scale: float = 1.0  # of the interval's figures: 100 where a change is in points


SHOWN_MEASURES = (
    Measure("perplexity", "Perplexity", number, relative, True),
    Measure("perplexity_after_8", "Perplexity after 8 tokens", number, relative, True),
    Measure("loss", "Loss, nats a token", number, difference, True),
    Measure("loss_after_8", "Loss after 8 tokens", number, difference, True),
    Measure("bits_per_byte", "Bits a byte", number, difference, True),
    Measure("body_bits_per_byte", "Bits a byte behind signature and docstring", number, difference, True),
    Measure("token_accuracy", "Tokens that were the likeliest", share, points, False, 100),
    Measure("ended_share", "Answers that end by themselves", share, points, False, 100),
    Measure("parses_share", "Answers that parse as Python", share, points, False, 100),
    Measure("exact_share", "Answers equal to the reference", share, points, False, 100),
    Measure("chrf", "chrF against the reference", number, difference, False),
    Measure("rouge_l", "ROUGE-L against the reference", number, difference, False),
    Measure("pass_at_1", "Answers that pass their tests", share, points, False, 100),
)
