"""What a model answers."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from stages._evaluate.batching import batches
from stages.shared.params import Evaluate
from stages.shared.progress import progress

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

PADDING = 0  # <unk>: never </s>, whose probability the model has to learn
Kept = MutableMapping[int, list[list[int]]]


def generate(
    model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate, kept: "Kept | None" = None
) -> list[list[int]]:
    """Greedy continuations, each up to and with its end-of-sequence token, at most params.max_new_tokens.

    kept: batches that an earlier run was through with, by their numbers; new ones are added as they are made.
    """
    from transformers import GenerationConfig

    # What is unset in a configuration is filled from the model's own, which may bring a repetition penalty.
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        max_new_tokens=params.max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=PADDING
    )
    outputs: dict[int, list[int]] = {}
    with progress("generate", len(prompts), " rows") as shown:
        for number, group in enumerate(batches([len(prompt) for prompt in prompts], params.batch_size)):
            answers = None if kept is None else kept[number]
            if answers is None:
                answers = generate_batch(model, [prompts[index] for index in group], config)
                if kept is not None:
                    kept[number] = answers
            outputs |= zip(group, answers, strict=True)
            shown.advance(len(group))
    return [outputs[index] for index in range(len(prompts))]


def generate_batch(model: "PreTrainedModel", prompts: list[list[int]], config: "GenerationConfig") -> list[list[int]]:
    """The prompts stand at the right, so that the answers begin at one place."""
    import torch

    eos, longest = config.eos_token_id, max(map(len, prompts))
    ids = torch.full((len(prompts), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.no_grad():
        found = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
    answers = found[:, longest:].tolist()
    return [answer[: answer.index(eos) + 1] if eos in answer else answer for answer in answers]
