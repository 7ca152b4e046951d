"""Evaluate: models/base or models/merged, data/clean/test.parquet, params `seed`, `prompt`,
`tokenize.train_turns`, `evaluate` →
metrics/evaluate/<name>.json, <name>.rows.jsonl and <name>.predictions.jsonl, where <name> is base or tuned.

Both models go through the same code on the same rows. The answers that are trained are scored, as in the validation
loss, and the last one is generated if it is trained. Each measure has a 95 % interval where there are enough rows.
rows.jsonl has the counts of each row, so that two models can be compared in pairs. The base also gets prompts in the
form that it knows from pre-training; the results are under `plain` in its files. Where records bring tests, the answers
run in a sandbox. A stopped generation continues where it was.

    dvc repro evaluate@tuned
    python -m stages.evaluate tuned models/merged    # the same by hand, without DVC
"""

from stages.runtime.stage_options import stage_options

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from stages._evaluate.completion_prompts import CompletionPrompt, completion_prompt
from stages._evaluate.model_run import Answers, ModelRun, PredictionReader, PromptIds
from stages._evaluate.predictions import (
    check_tests_fail_without_answer,
    completion_ids,
    count_answers,
    fitting_prompts,
    has_plain_form,
    prediction_line,
    read_answers,
    read_completions,
)
from stages._evaluate.sandbox import check_sandbox
from stages._evaluate.scoring import FORMAT_TOKENS, AnswerBody, answer_body, score, score_completions
from stages.core.machine import resolve_machine
from stages.core.models import load_model, make_deterministic
from stages.core.params import Params
from stages.core.paths import CLEAN, EVALUATIONS, write_json, write_text
from stages.core.prompts import Encoder
from stages.core.records import Record, is_trained, read_records, with_trained_turns
from stages.core.statistics import (
    COUNTS,
    GENERATED,
    clusters_of,
    columns_of,
    document_of,
    length_name,
    measures_with_intervals,
    slice_measures,
)
from stages.core.workers import count_workers
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_base
from stages.runtime.runner import Outcome, run_stage

NOT_SCORED, NOT_ANSWERED = dict.fromkeys(COUNTS, 0), dict.fromkeys(GENERATED, 0)


def scored_records(params: Params) -> list[Record]:
    """The first evaluate.max_rows records of the test split, without those in which nothing is trained.

    Raises:
        UserError: No record is left.
    """
    found = next(read_records(CLEAN / "test.parquet", params.evaluate.max_rows), [])
    turns = params.tokenize.train_turns
    records = [replace(record, messages=with_trained_turns(record.messages, turns)) for record in found]
    records = [record for record in records if any(map(is_trained, record.messages))]
    if not records:
        raise UserError(f"no answer of the {len(found)} test rows is trained. Set tokenize.train_turns: all")
    return records


def completion_prompts(run: ModelRun) -> tuple[list[CompletionPrompt | None], list[AnswerBody | None]]:
    """The completion prompt of each record, and the part of its answer that both kinds of prompt leave to the model.

    Both are None where has_plain_form() is false.
    """
    forms = [
        completion_prompt(record.messages[-2]["content"], record.messages[-1]["content"])
        if has_plain_form(record)
        else None
        for record in run.records
    ]
    pairs = zip(run.records, forms, strict=True)
    return forms, [form and answer_body(record, form, run.encoder, run.context) for record, form in pairs]


def evaluate(
    run: ModelRun, scores: list[dict], prompts: PromptIds, read: PredictionReader
) -> tuple[list[dict], Answers]:
    """Counts what each record's answers are worth.

    Args:
        scores: The counts of the answers in the data, one row a record.
        prompts: The prompts to answer.
        read: Makes predictions of the generated tokens.

    Returns:
        (the columns of stages.core.statistics.COLUMNS, one row a record; the answers to the prompts)
    """
    answers = run.answer(prompts, read)
    values = count_answers(answers.predictions)
    return [
        NOT_SCORED | counts | values.get(record.id, NOT_ANSWERED)
        for record, counts in zip(run.records, scores, strict=True)
    ], answers


def evaluate_completions(
    run: ModelRun, forms: list[CompletionPrompt | None], bodies: list[AnswerBody | None], places: Iterable[int]
) -> tuple[list[dict], Answers]:
    """evaluate() with completion prompts. Only the records at `places` that have one are answered."""
    scores = score_completions(run.model, bodies, run.settings)
    room = run.context - run.settings.max_new_tokens
    prompts = {place: completion_ids(forms[place], run.encoder, room) for place in places if forms[place]}
    read = partial(read_completions, [forms[place] for place in prompts], list(prompts.values()))
    return evaluate(run, scores, prompts, read)


def metrics_of(rows: list[dict], clusters: list[int]) -> dict[str, float]:
    """The metrics of one model. rows: the columns of stages.core.statistics.COLUMNS, one row a record."""
    columns = columns_of(rows)
    counts = {"rows": len(rows), "tokens": int(columns["tokens"].sum())}
    counts |= {"generated_rows": int(columns["answers"].sum()), "tested_rows": int(columns["tested"].sum())}
    return counts | measures_with_intervals(columns, np.array(clusters))


def slices_of(record: Record, counts: dict, names: list[str]) -> dict[str, str]:
    """{slice name: this record's value}, or "none" where it has no value."""
    made = {"source": document_of(record.source), "length": length_name(counts["tokens"])}
    return {name: made.get(name) or record.fields.get(name) or "none" for name in names}


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def summary(metrics: dict) -> str:
    interval = " (95 %: {perplexity_lo:.2f} to {perplexity_hi:.2f})" if "perplexity_lo" in metrics else ""
    perplexity = f"{{perplexity:.2f}}{interval}".format(**metrics)
    parses = f", {metrics['parses_share']:.0%} parse" if "parses_share" in metrics else ""
    if not metrics["generated_rows"]:
        return f"{plural(metrics['rows'], 'row')}, perplexity {perplexity}; no row has an answer to generate"
    passed = f", {metrics['pass_at_1']:.0%} of {metrics['tested_rows']} pass" if metrics["tested_rows"] else ""
    called = f", {metrics['call_arguments_share']:.0%} of calls right" if "call_arguments_share" in metrics else ""
    return (
        f"{plural(metrics['rows'], 'row')}, perplexity {perplexity}, {metrics['perplexity_after_8']:.2f} without the "
        f"first {FORMAT_TOKENS} tokens; of {plural(metrics['generated_rows'], 'answer')} "
        f"{metrics['ended_share']:.0%} ended{parses}, chrF {metrics['chrf']:.1f}{passed}{called}"
    )


def main(params: Params, name: str, weights: Path) -> Outcome:
    if name == "base":
        check_base(weights)
    section = params.evaluate
    make_deterministic(params.seed, wanted=True, warn_only=True)
    records = scored_records(params)
    if section.run_tests and any(record.tests for record in records):
        check_sandbox()  # now, not after the hours that a large model takes
    model = load_model(weights, resolve_machine(params.machine))
    run = ModelRun(model, weights, records, Encoder(params.prompt), params)
    prompts = fitting_prompts(records, run.encoder, section, run.context)
    if section.run_tests:
        check_tests_fail_without_answer([records[place] for place in prompts], section, count_workers(params.machine))
    forms, bodies = completion_prompts(run)
    scores = score(run.model, records, run.encoder, section, bodies)
    counts, answers = evaluate(run, scores, prompts, read_answers)
    clusters = clusters_of([record.source for record in records], section.cluster)
    rows = [
        {"id": record.id, "source": record.source, "cluster": cluster, **row}
        | {"slices": slices_of(record, row, section.slices)}
        for record, cluster, row in zip(records, clusters, counts, strict=True)
    ]
    predictions = [prediction_line(prediction) for prediction in answers.predictions]
    metrics = metrics_of(counts, clusters) | {
        "slices": {field: slice_measures(rows, field) for field in section.slices}
    }
    made = [answers]
    if name == "base":
        plain, plain_answers = evaluate_completions(run, forms, bodies, prompts)
        made.append(plain_answers)
        metrics["plain"] = metrics_of(plain, clusters)
        rows = [row | {"plain": counts} for row, counts in zip(rows, plain, strict=True)]
        outputs = {prediction.id: {"plain": prediction.output} for prediction in plain_answers.predictions}
        predictions = [prediction | outputs.get(prediction["id"], {}) for prediction in predictions]
    write_text(EVALUATIONS / f"{name}.predictions.jsonl", json_lines(predictions))
    write_text(EVALUATIONS / f"{name}.rows.jsonl", json_lines(rows))
    write_json(EVALUATIONS / f"{name}.json", metrics)
    rate = {"generated_tokens_per_second": round(answers.rate, 1)}
    return Outcome(summary(metrics), rate, lambda: [made_answers.cache.remove() for made_answers in made])


if __name__ == "__main__":
    options = stage_options("evaluate", __doc__)
    run_stage(f"evaluate@{options.name}", lambda params: main(params, options.name, options.weights))
