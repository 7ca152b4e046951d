"""What a model answers."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from stages._evaluate.batching import batches
from stages.shared.generation import Decoding, continuations
from stages.shared.params import Evaluate
from stages.shared.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kept = MutableMapping[int, list[list[int]]]


def generate(
    model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate, kept: "Kept | None" = None
) -> list[list[int]]:
    """Greedy continuations, each up to and with its end-of-sequence token, at most params.max_new_tokens.

    kept: batches that an earlier run was through with, by their numbers; new ones are added as they are made.
    """
    decoding = Decoding(params.max_new_tokens, temperature=0.0)
    outputs: dict[int, list[int]] = {}
    with progress("generate", len(prompts), " rows") as shown:
        for number, group in enumerate(batches([len(prompt) for prompt in prompts], params.batch_size)):
            answers = None if kept is None else kept[number]
            if answers is None:
                answers = continuations(model, [prompts[index] for index in group], eos, decoding)
                if kept is not None:
                    kept[number] = answers
            outputs |= zip(group, answers, strict=True)
            shown.advance(len(group))
    return [outputs[index] for index in range(len(prompts))]
