"""The answers that a model writes, and what they are worth beside those in the data."""

import ast
from dataclasses import dataclass, replace
from itertools import islice

from stages._evaluate.completion_prompts import Plain, continued
from stages._evaluate.sandbox import Program, outcomes
from stages.core.params import Evaluate
from stages.core.prompts import Encoder
from stages.core.python_syntax import parse, python_in
from stages.core.records import Record
from stages.runtime.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """An answer that the model wrote, beside the one in the data. tests: what came of its tests, where it has any."""

    id: str
    source: str
    prompt: str
    reference: str
    output: str
    ended: bool
    parses: bool
    tests: str | None = None


def is_code(text: str) -> bool:
    """Whether the text parses as Python and does more than state an expression, as any single word would."""
    tree = parse(text)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def asked(records: list[Record], encoder: Encoder, params: Evaluate, context: int) -> dict[int, list[int]]:
    """{number: prompt} of the records that are to be answered: those whose prompt leaves room in the model's context.

    Raises:
        UserError: there is none.
    """
    room = context - params.max_new_tokens
    prompts = ((number, encoder.prompt(record.messages[:-1])) for number, record in enumerate(records))
    fitting = dict(islice((each for each in prompts if len(each[1]) <= room), params.generate_rows))
    if not fitting:
        raise UserError(
            f"no test row's prompt leaves room for evaluate.max_new_tokens ({params.max_new_tokens}) in the model's "
            f"context of {context} tokens. Lower it"
        )
    return fitting


def prediction(record: Record, text: str, ended: bool) -> Prediction:
    question, reference = record.messages[-2]["content"], record.messages[-1]["content"]
    return Prediction(record.id, record.source, question, reference, text, ended, is_code(text))


def predict(records: list[Record], outputs: list[list[int]], encoder: Encoder) -> list[Prediction]:
    """outputs: the tokens of the answer to each record."""
    return [
        prediction(record, encoder.decode(ids), ids[-1:] == [encoder.eos])
        for record, ids in zip(records, outputs, strict=True)
    ]


def plain_prompt(form: Plain, encoder: Encoder, room: int) -> list[int]:
    """The end of the prompt, where it is longer than `room` tokens."""
    return [encoder.bos, *encoder.pieces.encode(form.prompt)[-(room - 1) :]]


def predict_plain(
    forms: list[Plain], prompts: list[list[int]], records: list[Record], outputs: list[list[int]], encoder: Encoder
) -> list[Prediction]:
    """The same of what follows on plain prompts."""
    predictions = []
    for record, form, prompt, ids in zip(records, forms, prompts, outputs, strict=True):
        # Decoded with what stands before, or the blank at its beginning would be lost.
        text = encoder.decode([*prompt, *ids])[len(encoder.decode(prompt)) :]
        answer, ended = continued(form, text)
        predictions.append(prediction(record, answer, ended or ids[-1:] == [encoder.eos]))
    return predictions


def refuse_tests_of_nothing(records: list[Record], params: Evaluate, workers: int) -> None:
    """Runs the records' tests behind an answer of nothing, which none may pass.

    Raises:
        UserError: some do, as where a test function is defined and nobody calls it.
    """
    tested = [record for record in records if record.tests]
    found = outcomes([Program("", record.tests) for record in tested], params, workers)
    idle = [record for record, outcome in zip(tested, found, strict=True) if outcome == "passed"]
    if idle:
        raise UserError(
            f"an answer with nothing in it passes the tests of {len(idle)} of {len(tested)} test rows, the first from "
            f"{idle[0].source} (id {idle[0].id}): they test nothing. Where they define a function, call it at their "
            "end, as in check(add) or test_add(); or take `tests` out of the row, or set evaluate.run_tests: false"
        )


def with_outcomes(
    predictions: list[Prediction], records: list[Record], params: Evaluate, workers: int
) -> list[Prediction]:
    """The predictions with the outcome of the tests that their records bring."""
    programs = {
        place: Program("\n".join(python_in(each.output)), record.tests)
        for place, (each, record) in enumerate(zip(predictions, records, strict=True))
        if record.tests
    }
    found = dict(zip(programs, outcomes(list(programs.values()), params, workers), strict=True))
    return [replace(each, tests=found.get(place)) for place, each in enumerate(predictions)]


def worth(predictions: list[Prediction]) -> dict[str, dict[str, float]]:
    """{id: what is counted of the answer that was generated (stages.core.statistics.GENERATED)}."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    chrf, rouge = CHRF(), RougeScorer(["rougeL"])
    return {
        each.id: {
            **{"answers": 1, "ended": int(each.ended), "parses": int(each.parses)},
            "exact": int(each.output.strip() == each.reference.strip()),
            "chrf": chrf.sentence_score(each.output, [each.reference]).score,
            "rouge_l": rouge.score(each.reference, each.output)["rougeL"].fmeasure,
            **{"tested": int(each.tests is not None), "passed": int(each.tests == "passed")},
        }
        for each in predictions
    }
