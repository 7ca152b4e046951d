"""The answers that a model writes, and how they compare with the answers in the data."""

import ast
from dataclasses import dataclass, replace
from itertools import islice

from stages._evaluate.calls import CALL_MARK, call_outcome, shown_calls
from stages._evaluate.completion_prompts import CompletionPrompt, complete_answer
from stages._evaluate.sandbox import Program, run_programs
from stages.core.params import Evaluate
from stages.core.prompts import Encoder
from stages.core.python_syntax import PYTHON, fenced_blocks, fenced_python_parses, parse, python_in
from stages.core.records import ANSWER_ROLES, Record, is_trained
from stages.runtime.errors import UserError

SHOWN_TURNS = 5  # of the conversation before an answer: the question and two exchanges before it


@dataclass(frozen=True)
class Prediction:
    """An answer that the model wrote, with the reference from the data.

    prompt: what was asked, as question_text() shows it.
    parses: whether it is Python that parses. None where the reference is no Python.
    tests: the outcome of its tests, if it has any.
    call: where the reference calls tools, what is right of the call (stages._evaluate.calls.call_outcome()).
    """

    id: str
    source: str
    prompt: str
    reference: str
    output: str
    ended: bool
    parses: bool | None
    tests: str | None = None
    call: str | None = None


def is_code(text: str) -> bool:
    """Whether the text parses as Python and has more than expressions. Any single word is an expression."""
    tree = parse(text)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def has_code(text: str) -> bool:
    """Whether the text is Python, or has a fenced block of it."""
    return bool(fenced_blocks(text, PYTHON)) or is_code(text)


def code_parses(text: str) -> bool:
    """Whether the blocks that are fenced as Python parse, or without any the whole text does."""
    return fenced_python_parses(text) if fenced_blocks(text, PYTHON) else is_code(text)


def is_answered(record: Record) -> bool:
    """Whether the record ends with an answer that is trained, so that the model is asked for one."""
    return record.messages[-1]["role"] in ANSWER_ROLES and is_trained(record.messages[-1])


def has_plain_form(record: Record) -> bool:
    """Whether the last answer can be asked for plainly: it is a text, and it answers a user."""
    return is_answered(record) and [message["role"] for message in record.messages[-2:]] == ["user", "assistant"]


def fitting_prompts(records: list[Record], encoder: Encoder, params: Evaluate, context: int) -> dict[int, list[int]]:
    """{number of the record: prompt} of the first params.generate_rows records whose prompt leaves room for an answer.

    It has only records that end with a trained answer, so it may be empty.

    Args:
        context: How many tokens the model reads.

    Raises:
        UserError: No prompt fits.
    """
    room = context - params.max_new_tokens
    answered = [number for number, record in enumerate(records) if is_answered(record)]
    prompts = ((number, encoder.prompt(records[number].messages[:-1])) for number in answered)
    fitting = dict(islice((prompt for prompt in prompts if len(prompt[1]) <= room), params.generate_rows))
    if answered and not fitting:
        raise UserError(
            f"no test row's prompt leaves room for evaluate.max_new_tokens ({params.max_new_tokens}) in the model's "
            f"context of {context} tokens. Lower it"
        )
    return fitting


def question_text(messages: list[dict[str, str]]) -> str:
    """What was asked: a single user turn as it is, else the system prompt and the last turns, each after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    system = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    texts = [f"{message['role'].capitalize()}: {message['content']}" for message in [*system, *turns[-SHOWN_TURNS:]]]
    if hidden := turns[:-SHOWN_TURNS]:
        texts.insert(len(system), f"(earlier turns that are not shown: {len(hidden)})")
    return "\n\n".join(texts)


def make_prediction(record: Record, text: str, ended: bool, marked: bool = False) -> Prediction:
    """The prediction of a generated text. marked: whether it began with [TOOL_CALLS]."""
    question, reference = question_text(record.messages[:-1]), record.messages[-1]["content"]
    if record.messages[-1]["role"] == "tool_calls":
        call, shown = call_outcome(text, reference, marked), [shown_calls(reference), shown_calls(text)]
        return Prediction(record.id, record.source, question, *shown, ended, None, call=call)
    parses = code_parses(text) if has_code(reference) else None
    return Prediction(record.id, record.source, question, reference, text, ended, parses)


def prediction_line(prediction: Prediction) -> dict:
    """The prediction as a row of <name>.predictions.jsonl. Only rows that call tools have `call`."""
    return {name: value for name, value in vars(prediction).items() if name != "call" or value is not None}


def read_answers(records: list[Record], outputs: list[list[int]], encoder: Encoder) -> list[Prediction]:
    """The predictions from the tokens of each record's answer."""
    return [
        make_prediction(record, encoder.decode(ids), ids[-1:] == [encoder.eos], encoder.begins_with(ids, CALL_MARK))
        for record, ids in zip(records, outputs, strict=True)
    ]


def completion_ids(form: CompletionPrompt, encoder: Encoder, room: int) -> list[int]:
    """The tokens of a completion prompt. Where it has more than `room`, only its end."""
    return [encoder.bos, *encoder.pieces.encode(form.prompt)[-(room - 1) :]]


def read_completions(
    forms: list[CompletionPrompt],
    prompts: list[list[int]],
    records: list[Record],
    outputs: list[list[int]],
    encoder: Encoder,
) -> list[Prediction]:
    """The predictions from the tokens that followed on completion prompts."""
    predictions = []
    for record, form, prompt, ids in zip(records, forms, prompts, outputs, strict=True):
        # Decoded together with the prompt, or the answer would lose a blank at its beginning.
        text = encoder.decode([*prompt, *ids])[len(encoder.decode(prompt)) :]
        answer, ended = complete_answer(form, text)
        predictions.append(make_prediction(record, answer, ended or ids[-1:] == [encoder.eos]))
    return predictions


def check_tests_fail_without_answer(records: list[Record], params: Evaluate, workers: int) -> None:
    """Runs the records' tests after an empty answer, which must fail them.

    Raises:
        UserError: Some pass. For example, a test function is defined and nobody calls it.
    """
    tested = [record for record in records if record.tests]
    outcomes = run_programs([Program("", record.tests) for record in tested], params, workers)
    idle = [record for record, outcome in zip(tested, outcomes, strict=True) if outcome == "passed"]
    if idle:
        raise UserError(
            f"an empty answer passes the tests of {len(idle)} of {len(tested)} test rows, the first from "
            f"{idle[0].source} (id {idle[0].id}), so they test nothing. If they define a function, call it at their "
            "end, as in check(add) or test_add(). Or remove `tests` from the row, or set evaluate.run_tests: false"
        )


def with_test_outcomes(
    predictions: list[Prediction], records: list[Record], params: Evaluate, workers: int
) -> list[Prediction]:
    """The predictions with the outcomes of the tests that their records bring."""
    programs = {
        place: Program("\n".join(python_in(prediction.output)), record.tests)
        for place, (prediction, record) in enumerate(zip(predictions, records, strict=True))
        if record.tests
    }
    outcomes = dict(zip(programs, run_programs(list(programs.values()), params, workers), strict=True))
    return [replace(prediction, tests=outcomes.get(place)) for place, prediction in enumerate(predictions)]


def call_counts(outcome: str | None) -> dict[str, int]:
    """The counts of stages.core.statistics.CALLS. Rows without calls have none."""
    if outcome is None:
        return {}
    right = ("not_json", "wrong_name", "wrong_arguments", "right").index(outcome) if outcome != "text" else 0
    return {"calls": 1, "call_json": int(right > 0), "call_name": int(right > 1), "call_arguments": int(right > 2)}


def count_answers(predictions: list[Prediction]) -> dict[str, dict[str, float]]:
    """{id: the counts of the generated answer (stages.core.statistics.GENERATED)}."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    chrf, rouge = CHRF(), RougeScorer(["rougeL"])
    return {
        prediction.id: {
            **{"answers": 1, "ended": int(prediction.ended)},
            **{"code": int(prediction.parses is not None), "parses": int(prediction.parses is True)},
            "exact": int(prediction.output.strip() == prediction.reference.strip()),
            "chrf": chrf.sentence_score(prediction.output, [prediction.reference]).score,
            "rouge_l": rouge.score(prediction.reference, prediction.output)["rougeL"].fmeasure,
            **{"tested": int(prediction.tests is not None), "passed": int(prediction.tests == "passed")},
            **call_counts(prediction.call),
        }
        for prediction in predictions
    }
