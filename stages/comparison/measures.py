"""The measures of an evaluation that people read: their labels, their number formats, and which way is better."""

from collections.abc import Callable, Container
from typing import NamedTuple

from stages.comparison.number_text import change_in_points, number, relative_change, share, signed_difference


class Measure(NamedTuple):
    """A measure of an evaluation. `show` writes its value, `change` the difference of two values."""

    name: str
    label: str
    show: Callable[[float | None], str]
    change: Callable[[float, float], str]
    lower_is_better: bool
    scale: float = 1.0  # factor for the interval: 100 where a change is in points


SHOWN_MEASURES = (
    Measure("perplexity", "Perplexity", number, relative_change, True),
    Measure("perplexity_after_8", "Perplexity after 8 tokens", number, relative_change, True),
    Measure("loss", "Loss, nats a token", number, signed_difference, True),
    Measure("loss_after_8", "Loss after 8 tokens", number, signed_difference, True),
    Measure("bits_per_byte", "Bits a byte", number, signed_difference, True),
    Measure("body_bits_per_byte", "Bits a byte after signature and docstring", number, signed_difference, True),
    Measure("token_accuracy", "Tokens that were the likeliest", share, change_in_points, False, 100),
    Measure("ended_share", "Answers that end by themselves", share, change_in_points, False, 100),
    Measure("parses_share", "Answers that parse as Python", share, change_in_points, False, 100),
    Measure("exact_share", "Answers equal to the reference", share, change_in_points, False, 100),
    Measure("chrf", "chrF against the reference", number, signed_difference, False),
    Measure("rouge_l", "ROUGE-L against the reference", number, signed_difference, False),
    Measure("call_json_share", "Calls of tools that are valid", share, change_in_points, False, 100),
    Measure("call_name_share", "Calls with the right tool", share, change_in_points, False, 100),
    Measure("call_arguments_share", "Calls with the right tool and arguments", share, change_in_points, False, 100),
    Measure("pass_at_1", "Answers that pass their tests", share, change_in_points, False, 100),
)

CODE_MEASURE = "parses_share"  # only an evaluation with answers in code has it
PROSE_LABELS = {"body_bits_per_byte": "Bits a byte of the last answer’s text"}  # where no answer is code


def answers_are_code(evaluation: Container[str]) -> bool:
    """Whether any test row's answer is code, by the names of an evaluation's measures."""
    return CODE_MEASURE in evaluation


def label_of(measure: Measure, of_code: bool) -> str:
    """The measure's label in an evaluation of code or of prose."""
    return measure.label if of_code else PROSE_LABELS.get(measure.name, measure.label)
