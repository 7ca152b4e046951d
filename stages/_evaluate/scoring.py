"""How probable a model finds the answers in the data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages._evaluate.completion_prompts import CompletionPrompt
from stages._evaluate.generation import batches
from stages.core.models import packed_batch
from stages.core.params import Evaluate
from stages.core.prompts import IGNORED, Encoder
from stages.core.records import Record
from stages.runtime.errors import UserError
from stages.runtime.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMAT_TOKENS = 8  # the first tokens of an answer, which the format alone predicts
SCORED_AT_ONCE = 512  # positions whose logits are in memory at a time


def token_losses(model: "PreTrainedModel", rows: list[dict]) -> "list[torch.Tensor]":
    """The losses of each row's trained tokens.

    Returns:
        For each row a tensor of shape (2, tokens) in fp32: the cross-entropy in nats, and 1 where the token was the
        most likely one, else 0.
    """
    import torch
    from torch.nn.functional import cross_entropy

    batch = packed_batch(rows, model.device)
    targets = batch.pop("labels")[:, 1:]
    trained = targets != IGNORED
    with torch.no_grad():
        states = model.model(**batch, use_cache=False).last_hidden_state[:, :-1][trained]
        chunks = []
        for part, target in zip(states.split(SCORED_AT_ONCE), targets[trained].split(SCORED_AT_ONCE), strict=True):
            logits = model.lm_head(part).float()
            correct = (logits.argmax(-1) == target).float()
            chunks.append(torch.stack([cross_entropy(logits, target, reduction="none"), correct]))
    return list(torch.cat(chunks, dim=1).cpu().split(trained.sum(1).tolist(), dim=1))


def later_tokens(labels: list[int]) -> list[int]:
    """The positions, among a row's trained tokens, of those after the first FORMAT_TOKENS of their answer."""
    later, number, since = [], 0, 0
    for label in labels[1:]:
        since = 0 if label == IGNORED else since + 1
        if since > FORMAT_TOKENS:
            later.append(number)
        number += label != IGNORED
    return later


@dataclass(frozen=True)
class AnswerBody:
    """The part of an answer that its completion prompt does not contain, as tokens of two texts.

    Args:
        tokens: In the conversation, the body is this many trained tokens before </s>.
        ids: The completion prompt and the answer.
        start: Where the body begins in `ids`.
        bytes: The body's length in UTF-8.
    """

    tokens: int
    ids: list[int]
    start: int
    bytes: int


def answer_body(record: Record, form: CompletionPrompt, encoder: Encoder, context: int) -> AnswerBody | None:
    """The body of a record's answer.

    None where a text is longer than the context, or a token crosses the body's beginning.
    """
    answer = encoder.turns(record.messages)[-1][0]
    whole, given, plain, prompt = map(encoder.pieces.encode, (answer, form.given, form.prompt + form.rest, form.prompt))
    fits = len(encoder.conversation(record.messages).input_ids) <= context and len(plain) < context
    if not fits or not form.rest or whole[: len(given)] != given or plain[: len(prompt)] != prompt:
        return None
    ids = [encoder.bos, *plain]
    return AnswerBody(len(whole) - len(given), ids, 1 + len(prompt), len(form.rest.encode()))


def score_completions(model: "PreTrainedModel", bodies: list[AnswerBody | None], params: Evaluate) -> list[dict]:
    """Counts body_bytes and body_loss_sum, as score() does, for bodies that follow their completion prompts."""
    counts = [{"body_bytes": 0, "body_loss_sum": 0.0} for _ in bodies]
    present = {place: body for place, body in enumerate(bodies) if body}
    rows = {
        place: {
            **{"input_ids": body.ids, "seq_lengths": [len(body.ids)]},
            "labels": [IGNORED] * body.start + body.ids[body.start :],
        }
        for place, body in present.items()
    }
    places = list(rows)
    with progress("score plain", len(rows), " rows") as shown:
        for group in batches([len(rows[place]["input_ids"]) for place in places], params.batch_size):
            chosen = [places[index] for index in group]
            for place, losses in zip(chosen, token_losses(model, [rows[place] for place in chosen]), strict=True):
                counts[place] = {"body_bytes": present[place].bytes, "body_loss_sum": losses[0].double().sum().item()}
            shown.advance(len(group))
    return counts


def score(
    model: "PreTrainedModel",
    records: list[Record],
    encoder: Encoder,
    params: Evaluate,
    bodies: list[AnswerBody | None],
) -> list[dict]:
    """The counts of each record's answers in the data (stages.core.statistics.COUNTS).

    Raises:
        UserError: No answer has a token after its first FORMAT_TOKENS.
    """
    context = model.config.max_position_embeddings
    rows = []
    for encoded in encoder.conversations([record.messages for record in records]):
        ids, labels = encoded.input_ids[:context], encoded.labels[:context]
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": [len(ids)]})
    counts: dict[int, dict] = {}
    with progress("score", len(rows), " rows") as shown:
        for group in batches([len(row["input_ids"]) for row in rows], params.batch_size):
            for index, losses in zip(group, token_losses(model, [rows[index] for index in group]), strict=True):
                counts[index] = row_counts(losses.double(), rows[index]["labels"], encoder, bodies[index])
            shown.advance(len(group))
    if not any(row["later_tokens"] for row in counts.values()):
        raise UserError(
            f"no answer of the {len(rows)} test rows has a token after its first {FORMAT_TOKENS} within the model's "
            f"context of {context}: there is nothing to compare. See clean.max_characters"
        )
    return [counts[index] for index in range(len(rows))]


def row_counts(
    losses_and_correct: "torch.Tensor", labels: list[int], encoder: Encoder, body: AnswerBody | None
) -> dict[str, float]:
    """The counts of one row. losses_and_correct: of shape (2, tokens), as token_losses() gives it."""
    losses, correct = losses_and_correct
    later = losses[later_tokens(labels)]
    text = encoder.decode([label for label in labels if label != IGNORED])
    return {
        **{"tokens": len(losses), "loss_sum": losses.sum().item()},
        **{"later_tokens": len(later), "later_loss_sum": later.sum().item()},
        **{"correct_tokens": int(correct.sum()), "bytes": len(text.encode())},
        "body_bytes": body.bytes if body else 0,
        "body_loss_sum": losses[-1 - body.tokens : -1].sum().item() if body else 0.0,
    }
