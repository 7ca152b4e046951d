"""Evaluate: models/base or models/merged, data/clean/test.parquet, params `seed`, `prompt`, `evaluate`
→ metrics/evaluate/<name>.json, <name>.rows.jsonl and <name>.predictions.jsonl, where <name> is base or tuned.

Both models go through the same code on the same rows. Each measure comes with a 95 % interval; rows.jsonl has what they
are made of, row by row, so that two models can be compared in pairs. Run it with `dvc repro evaluate@tuned`; by hand:
`python -m stages.evaluate tuned models/merged`.
"""

import ast
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages._evaluate.generation import generate
from stages._evaluate.scoring import FORMAT_TOKENS, score
from stages.shared.code import parse
from stages.shared.errors import UserError
from stages.shared.measures import COLUMNS, GENERATED, clusters_of, evaluated
from stages.shared.models import load_model, make_deterministic
from stages.shared.params import Evaluate, Params
from stages.shared.paths import CLEAN, EVALUATIONS, write_json, write_text
from stages.shared.prompts import Encoder
from stages.shared.records import Record, read_records
from stages.shared.stage import Outcome, run_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Prediction:
    """An answer that the model wrote, beside the one in the data."""

    id: str
    source: str
    prompt: str
    reference: str
    output: str
    ended: bool
    parses: bool


def is_code(text: str) -> bool:
    """Whether the text parses as Python and does more than state an expression, as any single word would."""
    tree = parse(text)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def predict(
    model: "PreTrainedModel", records: list[Record], encoder: Encoder, params: Evaluate
) -> tuple[list[Prediction], float]:
    """An answer to each record whose prompt leaves room for one, and how many tokens a second were generated."""
    room = model.config.max_position_embeddings - params.max_new_tokens
    asked = [(record, encoder.prompt(record.messages[:-1])) for record in records]
    asked = [(record, prompt) for record, prompt in asked if len(prompt) <= room][: params.generate_rows]
    if not asked:
        raise UserError(
            f"no test row's prompt leaves room for evaluate.max_new_tokens ({params.max_new_tokens}) in the model's "
            f"context of {model.config.max_position_embeddings} tokens. Lower it"
        )
    started = time.monotonic()
    outputs = generate(model, [prompt for _, prompt in asked], encoder.eos, params)
    seconds = time.monotonic() - started
    predictions = []
    for (record, _), ids in zip(asked, outputs, strict=True):
        question, reference = record.messages[-2]["content"], record.messages[-1]["content"]
        text = encoder.decode(ids)
        ended = ids[-1:] == [encoder.eos]
        predictions.append(Prediction(record.id, record.source, question, reference, text, ended, is_code(text)))
    return predictions, sum(map(len, outputs)) / seconds


def worth(predictions: list[Prediction]) -> dict[str, dict[str, float]]:
    """{id: what is counted of the answer that was generated (stages.shared.measures.GENERATED)}."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    chrf, rouge = CHRF(), RougeScorer(["rougeL"])
    return {
        each.id: {
            **{"answers": 1, "ended": int(each.ended), "parses": int(each.parses)},
            "exact": int(each.output.strip() == each.reference.strip()),
            "chrf": chrf.sentence_score(each.output, [each.reference]).score,
            "rouge_l": rouge.score(each.reference, each.output)["rougeL"].fmeasure,
        }
        for each in predictions
    }


def metrics_of(rows: list[dict]) -> dict[str, float]:
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in COLUMNS}
    tokens, answers = (int(columns[name].sum()) for name in ("tokens", "answers"))
    counts = {"rows": len(rows), "tokens": tokens, "generated_rows": answers}
    return counts | evaluated(columns, np.array([row["cluster"] for row in rows]))


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def main(params: Params, name: str, weights: Path) -> Outcome:
    make_deterministic(params.seed, wanted=True, warn_only=True)
    records = next(read_records(CLEAN / "test.parquet", params.evaluate.max_rows), [])
    encoder = Encoder(params.prompt)
    model = load_model(weights, params.machine)
    scores = score(model, records, encoder, params.evaluate)
    predictions, rate = predict(model, records, encoder, params.evaluate)
    answers, none = worth(predictions), dict.fromkeys(GENERATED, 0)
    clusters = clusters_of([record.source for record in records], params.evaluate.cluster)
    rows = [
        {"id": record.id, "source": record.source, "cluster": cluster, **counts, **answers.get(record.id, none)}
        for record, cluster, counts in zip(records, clusters, scores, strict=True)
    ]
    metrics = metrics_of(rows)
    write_text(EVALUATIONS / f"{name}.predictions.jsonl", lines([vars(prediction) for prediction in predictions]))
    write_text(EVALUATIONS / f"{name}.rows.jsonl", lines(rows))
    write_json(EVALUATIONS / f"{name}.json", metrics)
    perplexity = "{perplexity:.2f} (95 %: {perplexity_lo:.2f} to {perplexity_hi:.2f})".format(**metrics)
    return Outcome(
        f"{metrics['rows']} rows, perplexity {perplexity}, {metrics['perplexity_after_8']:.2f} without the first "
        f"{FORMAT_TOKENS} tokens; of {metrics['generated_rows']} answers {metrics['ended_share']:.0%} ended, "
        f"{metrics['parses_share']:.0%} parse, chrF {metrics['chrf']:.1f}",
        {"generated_tokens_per_second": round(rate, 1)},
    )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("base", "tuned"):
        sys.exit("usage: python -m stages.evaluate {base|tuned} FOLDER")
    run_stage(f"evaluate@{sys.argv[1]}", lambda params: main(params, sys.argv[1], Path(sys.argv[2])))
