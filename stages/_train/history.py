"""The validation losses in the trainer's log."""

import math


def evaluations(history: list[dict]) -> list[tuple[int, float]]:
    """(step, loss in nats a trained token) of each evaluation."""
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def best(history: list[dict]) -> int:
    """The first of the evaluations with the lowest loss, as an index. NaN is never the lowest."""
    losses = [math.inf if math.isnan(loss) else loss for _, loss in evaluations(history)]
    return losses.index(min(losses))
