"""Evaluate: models/base or models/merged, data/clean/test.parquet, params `seed`, `prompt`, `evaluate`
→ metrics/evaluate/<name>.json and <name>.predictions.jsonl, where <name> is base or tuned.

Both models go through the same code on the same rows. Run it with `dvc repro evaluate@tuned`; by hand:
`python -m stages.evaluate tuned models/merged`.
"""

import ast
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages._evaluate.generation import generate
from stages._evaluate.scoring import FORMAT_TOKENS, score
from stages.shared.code import parse
from stages.shared.errors import UserError
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
) -> tuple[list[Prediction], dict[str, float]]:
    """An answer to each record whose prompt leaves room for one, and what they are worth."""
    from sacrebleu.metrics import CHRF

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
    count = len(predictions)
    chrf = CHRF().corpus_score([p.output for p in predictions], [[p.reference for p in predictions]]).score
    metrics = {
        "generated_rows": count,
        "ended_share": sum(p.ended for p in predictions) / count,
        "parses_share": sum(p.parses for p in predictions) / count,
        "chrf": chrf,
    }
    return predictions, metrics | {"generated_tokens_per_second": sum(map(len, outputs)) / seconds}


def main(params: Params, name: str, weights: Path) -> Outcome:
    make_deterministic(params.seed, wanted=True, warn_only=True)
    records = next(read_records(CLEAN / "test.parquet", params.evaluate.max_rows), [])
    encoder = Encoder(params.prompt)
    model = load_model(weights, params.machine)
    metrics = score(model, records, encoder, params.evaluate)
    predictions, generated = predict(model, records, encoder, params.evaluate)
    timing = {"generated_tokens_per_second": round(generated.pop("generated_tokens_per_second"), 1)}
    metrics |= generated
    lines = [json.dumps(vars(prediction), ensure_ascii=False, sort_keys=True) + "\n" for prediction in predictions]
    write_text(EVALUATIONS / f"{name}.predictions.jsonl", "".join(lines))
    write_json(EVALUATIONS / f"{name}.json", metrics)
    return Outcome(
        f"{metrics['rows']} rows, perplexity {metrics['perplexity']:.2f} ({metrics['perplexity_after_8']:.2f} without "
        f"the first {FORMAT_TOKENS} tokens); of {metrics['generated_rows']} answers "
        f"{metrics['ended_share']:.0%} ended, {metrics['parses_share']:.0%} parse, chrF {metrics['chrf']:.1f}",
        timing,
    )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("base", "tuned"):
        sys.exit("usage: python -m stages.evaluate {base|tuned} FOLDER")
    run_stage(f"evaluate@{sys.argv[1]}", lambda params: main(params, sys.argv[1], Path(sys.argv[2])))
