"""The answers that a model writes, and what they are worth beside those in the data."""

import ast
from dataclasses import dataclass, replace
from itertools import islice

from stages._evaluate.completion_prompts import CompletionPrompt, complete_answer
from stages._evaluate.sandbox import Program, run_programs
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


def fitting_prompts(records: list[Record], encoder: Encoder, params: Evaluate, context: int) -> dict[int, list[int]]:
    """{number: prompt} of the records that are to be answered: those whose prompt leaves room in the model's context.

    Raises:
        UserError: there is none.
    """
    room = context - params.max_new_tokens
    prompts = ((number, encoder.prompt(record.messages[:-1])) for number, record in enumerate(records))
    fitting = dict(islice((prompt for prompt in prompts if len(prompt[1]) <= room), params.generate_rows))
    if not fitting:
        raise UserError(
            f"no test row's prompt leaves room for evaluate.max_new_tokens ({params.max_new_tokens}) in the model's "
            f"context of {context} tokens. Lower it"
        )
    return fitting


def make_prediction(record: Record, text: str, ended: bool) -> Prediction:
    question, reference = record.messages[-2]["content"], record.messages[-1]["content"]
    return Prediction(record.id, record.source, question, reference, text, ended, is_code(text))


def read_answers(records: list[Record], outputs: list[list[int]], encoder: Encoder) -> list[Prediction]:
    """outputs: the tokens of the answer to each record."""
    return [
        make_prediction(record, encoder.decode(ids), ids[-1:] == [encoder.eos])
        for record, ids in zip(records, outputs, strict=True)
    ]


def completion_ids(form: CompletionPrompt, encoder: Encoder, room: int) -> list[int]:
    """The end of the prompt, where it is longer than `room` tokens."""
    return [encoder.bos, *encoder.pieces.encode(form.prompt)[-(room - 1) :]]


def read_completions(
    forms: list[CompletionPrompt],
    prompts: list[list[int]],
    records: list[Record],
    outputs: list[list[int]],
    encoder: Encoder,
) -> list[Prediction]:
    """The same of what follows on plain prompts."""
    predictions = []
    for record, form, prompt, ids in zip(records, forms, prompts, outputs, strict=True):
        # Decoded with what stands before, or the blank at its beginning would be lost.
        text = encoder.decode([*prompt, *ids])[len(encoder.decode(prompt)) :]
        answer, ended = complete_answer(form, text)
        predictions.append(make_prediction(record, answer, ended or ids[-1:] == [encoder.eos]))
    return predictions


def check_tests_fail_without_answer(records: list[Record], params: Evaluate, workers: int) -> None:
    """Runs the records' tests behind an answer of nothing, which none may pass.

    Raises:
        UserError: some do, as where a test function is defined and nobody calls it.
    """
    tested = [record for record in records if record.tests]
    outcomes = run_programs([Program("", record.tests) for record in tested], params, workers)
    idle = [record for record, outcome in zip(tested, outcomes, strict=True) if outcome == "passed"]
    if idle:
        raise UserError(
            f"an answer with nothing in it passes the tests of {len(idle)} of {len(tested)} test rows, the first from "
            f"{idle[0].source} (id {idle[0].id}): they test nothing. Where they define a function, call it at their "
            "end, as in check(add) or test_add(); or take `tests` out of the row, or set evaluate.run_tests: false"
        )


def with_test_outcomes(
    predictions: list[Prediction], records: list[Record], params: Evaluate, workers: int
) -> list[Prediction]:
    """The predictions with the outcome of the tests that their records bring."""
    programs = {
        place: Program("\n".join(python_in(prediction.output)), record.tests)
        for place, (prediction, record) in enumerate(zip(predictions, records, strict=True))
        if record.tests
    }
    outcomes = dict(zip(programs, run_programs(list(programs.values()), params, workers), strict=True))
    return [replace(prediction, tests=outcomes.get(place)) for place, prediction in enumerate(predictions)]


def count_answers(predictions: list[Prediction]) -> dict[str, dict[str, float]]:
    """{id: what is counted of the answer that was generated (stages.core.statistics.GENERATED)}."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    chrf, rouge = CHRF(), RougeScorer(["rougeL"])
    return {
        prediction.id: {
            **{"answers": 1, "ended": int(prediction.ended), "parses": int(prediction.parses)},
            "exact": int(prediction.output.strip() == prediction.reference.strip()),
            "chrf": chrf.sentence_score(prediction.output, [prediction.reference]).score,
            "rouge_l": rouge.score(prediction.reference, prediction.output)["rougeL"].fmeasure,
            **{"tested": int(prediction.tests is not None), "passed": int(prediction.tests == "passed")},
        }
        for prediction in predictions
    }
