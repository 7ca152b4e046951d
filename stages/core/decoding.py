"""Generates what a model writes after a prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PADDING = 0  # <unk>: never </s>, whose probability the model has to learn


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most likely token. Otherwise it divides the logits, and one token is drawn from the
            whole distribution.
    """

    max_new_tokens: int
    temperature: float


class Streamer(Protocol):
    """Receives a single answer while transformers writes it: first the prompt's ids, then each token."""

    def put(self, ids: "torch.Tensor") -> None: ...

    def end(self) -> None: ...


def continuations(
    model: "PreTrainedModel", prompts: list[list[int]], eos: int, decoding: Decoding, streamer: Streamer | None = None
) -> list[list[int]]:
    """What the model writes after each prompt, up to and with its end-of-sequence token. All prompts are one batch.

    Args:
        eos: The end-of-sequence token.
        streamer: Receives the tokens, for a batch of one.
    """
    import torch
    from transformers import GenerationConfig

    # Unset values come from the model's own configuration, which may have a repetition penalty.
    model.generation_config = GenerationConfig()
    drawn = {"temperature": decoding.temperature, "top_k": 0, "top_p": 1.0} if decoding.temperature else {}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=bool(drawn), eos_token_id=eos, pad_token_id=PADDING, **drawn
    )
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.no_grad():
        generated = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            streamer=streamer,
        )
    answers = generated[:, longest:].tolist()
    return [answer[: answer.index(eos) + 1] if eos in answer else answer for answer in answers]
