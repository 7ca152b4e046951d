"""Generates answers in batches of prompts with similar lengths."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from stages.core.decoding import Decoding, continuations
from stages.core.params import Evaluate
from stages.runtime.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AnswerBatches = MutableMapping[int, list[list[int]]]  # token ids of the answers, by the number of their batch


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices in groups of `size`, longest first. Similar lengths in a group waste little padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def generate(
    model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate, cache: "AnswerBatches | None" = None
) -> list[list[int]]:
    """Greedy continuations of the prompts, in the order of the prompts.

    Args:
        eos: The end-of-sequence token. An answer ends with it, or after params.max_new_tokens.
        cache: Batches that an earlier run has finished, by their numbers. New batches are added.
    """
    decoding = Decoding(params.max_new_tokens, temperature=0.0)
    outputs: dict[int, list[int]] = {}
    with progress("generate", len(prompts), " rows") as shown:
        for number, group in enumerate(batches([len(prompt) for prompt in prompts], params.batch_size)):
            answers = None if cache is None else cache[number]
            if answers is None:
                answers = continuations(model, [prompts[index] for index in group], eos, decoding)
                if cache is not None:
                    cache[number] = answers
            outputs |= zip(group, answers, strict=True)
            shown.advance(len(group))
    return [outputs[index] for index in range(len(prompts))]
