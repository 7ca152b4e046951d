"""What a model answers."""

from typing import TYPE_CHECKING

from stages._evaluate.batching import batches
from stages.shared.params import Evaluate
from stages.shared.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDING = 0  # <unk>: never </s>, whose probability the model has to learn


def generate(model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate) -> list[list[int]]:
    """Greedy continuations, each up to and with its end-of-sequence token, at most params.max_new_tokens."""
    import torch
    from transformers import GenerationConfig

    # What is unset in a configuration is filled from the model's own, which may bring a repetition penalty.
    model.generation_config = GenerationConfig()
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
