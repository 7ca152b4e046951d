"""Evaluate: models/base or models/merged, data/clean/test.parquet, params `seed`, `prompt`, `evaluate`
→ metrics/evaluate/<name>.json and <name>.predictions.jsonl, where <name> is base or tuned.

Both models go through the same code on the same rows. Run it with `dvc repro evaluate@tuned`; by hand:
`python -m stages.evaluate tuned models/merged`.
"""

import ast
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.shared.code import parse
from stages.shared.models import load_model, make_deterministic, packed_batch
from stages.shared.params import Evaluate, Params
from stages.shared.paths import CLEAN, EVALUATIONS, write_json, write_text
from stages.shared.progress import progress
from stages.shared.prompts import IGNORED, Encoder
from stages.shared.records import Record, read_records
from stages.shared.stage import Outcome, run_stage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMAT_TOKENS = 8  # the first tokens of an answer, which knowing the format alone predicts
CHUNK = 512  # positions whose logits exist at one time
PADDING = 0  # <unk>: never </s>, whose probability the model has to learn


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


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices, longest first, in groups of `size`: rows of like length waste little padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def token_losses(model: "PreTrainedModel", rows: list[dict]) -> "list[torch.Tensor]":
    """For each row the cross-entropy of each of its trained tokens, in nats."""
    import torch
    from torch.nn.functional import cross_entropy

    batch = packed_batch(rows, model.device)
    targets = batch.pop("labels")[:, 1:]
    kept = targets != IGNORED
    with torch.no_grad():
        states = model.model(**batch, use_cache=False).last_hidden_state[:, :-1][kept]
        chunks = zip(states.split(CHUNK), targets[kept].split(CHUNK), strict=True)
        losses = [cross_entropy(model.lm_head(part).float(), target, reduction="none") for part, target in chunks]
    return list(torch.cat(losses).cpu().split(kept.sum(1).tolist()))


def score(model: "PreTrainedModel", records: list[Record], encoder: Encoder, params: Evaluate) -> dict[str, float]:
    """Loss and perplexity on the assistant's tokens, also without each answer's first FORMAT_TOKENS."""
    context = model.config.max_position_embeddings
    rows = []
    for record in records:
        encoded = encoder.conversation(record.messages)
        ids, labels = encoded.input_ids[:context], encoded.labels[:context]
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": [len(ids)]})
    losses: dict[int, torch.Tensor] = {}
    with progress("score", len(rows), " rows") as shown:
        for group in batches([len(row["input_ids"]) for row in rows], params.batch_size):
            losses |= zip(group, token_losses(model, [rows[index] for index in group]), strict=True)
            shown.advance(len(group))
    ordered = [losses[index].double() for index in range(len(rows))]
    tokens = sum(map(len, ordered))
    loss = sum(row.sum().item() for row in ordered) / tokens
    later = [row[FORMAT_TOKENS:] for row in ordered]
    later_loss = sum(row.sum().item() for row in later) / sum(map(len, later))
    return {
        "rows": len(rows),
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_after_8": later_loss,
        "perplexity_after_8": math.exp(later_loss),
    }


def generate(model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate) -> list[list[int]]:
    """Greedy continuations, each up to and with its end-of-sequence token, at most params.max_new_tokens."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=params.max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=PADDING
    )
    outputs: dict[int, list[int]] = {}
    with progress("generate", len(prompts), " rows") as shown, torch.no_grad():
        for group in batches([len(prompt) for prompt in prompts], params.batch_size):
            longest = max(len(prompts[index]) for index in group)
            ids = torch.full((len(group), longest), PADDING)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(group):
                ids[row, longest - len(prompts[index]) :] = torch.as_tensor(prompts[index])
                mask[row, longest - len(prompts[index]) :] = 1
            found = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
            for row, index in enumerate(group):
                answer = found[row, longest:].tolist()
                outputs[index] = answer[: answer.index(eos) + 1] if eos in answer else answer
            shown.advance(len(group))
    return [outputs[index] for index in range(len(prompts))]


def predict(
    model: "PreTrainedModel", records: list[Record], encoder: Encoder, params: Evaluate
) -> tuple[list[Prediction], dict[str, float]]:
    """An answer to each record whose prompt leaves room for one, and what they are worth."""
    from sacrebleu.metrics import CHRF

    room = model.config.max_position_embeddings - params.max_new_tokens
    asked = [(record, encoder.prompt(record.messages[:-1])) for record in records]
    asked = [(record, prompt) for record, prompt in asked if len(prompt) <= room][: params.generate_rows]
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
    make_deterministic(params.seed, wanted=True)
    records = read_records(CLEAN / "test.parquet")[: params.evaluate.max_rows]
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
