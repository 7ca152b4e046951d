"""How probable a model finds the answers in the data."""

import math
from typing import TYPE_CHECKING

from stages._evaluate.batching import batches
from stages.shared.errors import UserError
from stages.shared.models import packed_batch
from stages.shared.params import Evaluate
from stages.shared.progress import progress
from stages.shared.prompts import IGNORED, Encoder
from stages.shared.records import Record

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMAT_TOKENS = 8  # the first tokens of an answer, which knowing the format alone predicts
CHUNK = 512  # positions whose logits exist at one time


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


def later_tokens(labels: list[int]) -> list[int]:
    """Of a row's trained tokens, the numbers of those after the first FORMAT_TOKENS of their answer."""
    later, number, since = [], 0, 0
    for label in labels[1:]:
        since = 0 if label == IGNORED else since + 1
        if since > FORMAT_TOKENS:
            later.append(number)
        number += label != IGNORED
    return later


def score(model: "PreTrainedModel", records: list[Record], encoder: Encoder, params: Evaluate) -> dict[str, float]:
    """Loss and perplexity on the assistant's tokens, also without each answer's first FORMAT_TOKENS."""
    context = model.config.max_position_embeddings
    rows = []
    for encoded in encoder.conversations([record.messages for record in records]):
        ids, labels = encoded.input_ids[:context], encoded.labels[:context]
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": [len(ids)]})
    losses: dict[int, torch.Tensor] = {}
    with progress("score", len(rows), " rows") as shown:
        for group in batches([len(row["input_ids"]) for row in rows], params.batch_size):
            losses |= zip(group, token_losses(model, [rows[index] for index in group]), strict=True)
            shown.advance(len(group))
    ordered = [losses[index].double() for index in range(len(rows))]
    tokens = sum(map(len, ordered))
    later = [row[later_tokens(each["labels"])] for row, each in zip(ordered, rows, strict=True)]
    later_count = sum(map(len, later))
    if not later_count:
        raise UserError(
            f"no answer of the {len(rows)} test rows has a token after its first {FORMAT_TOKENS} within the model's "
            f"context of {context}: there is nothing to compare. See clean.max_characters"
        )
    loss = sum(row.sum().item() for row in ordered) / tokens
    later_loss = sum(row.sum().item() for row in later) / later_count
    return {
        "rows": len(rows),
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_after_8": later_loss,
        "perplexity_after_8": math.exp(later_loss),
    }
