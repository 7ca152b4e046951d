"""What a model answers."""

from typing import TYPE_CHECKING

from stages._evaluate.batching import batches
from stages.shared.generation import Decoding, continuations
from stages.shared.params import Evaluate
from stages.shared.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate(model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate) -> list[list[int]]:
    """Greedy continuations, each up to and with its end-of-sequence token, at most params.max_new_tokens."""
    decoding = Decoding(params.max_new_tokens, temperature=0.0)
    outputs: dict[int, list[int]] = {}
    with progress("generate", len(prompts), " rows") as shown:
        for group in batches([len(prompt) for prompt in prompts], params.batch_size):
            answers = continuations(model, [prompts[index] for index in group], eos, decoding)
            outputs |= dict(zip(group, answers, strict=True))
            shown.advance(len(group))
    return [outputs[index] for index in range(len(prompts))]
