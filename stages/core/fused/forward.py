"""One forward pass of a layer: what it is called with, what is kept of it, what it drew."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from stages.core.fused.lora import Used


@dataclass(frozen=True)
class Call:
    """What transformers hands to every layer. cos, sin: (rows, length, size of a head)."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None
    options: dict

    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cos.flatten(0, 1), self.sin.flatten(0, 1)


@dataclass
class Activations:
    """Of one forward pass. attention: its inputs q, k, v (rows, length, heads, size) and its output, a graph of its
    own; middle: the hidden states between attention and MLP (tokens, width); gate, up: (tokens, intermediate)."""

    used: dict[str, Used] = field(default_factory=dict)
    attention: tuple[torch.Tensor, ...] = ()
    middle: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None


@contextmanager
def draws_of(state: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Random numbers as they were drawn when the generator was in this state, and then on as if they were not."""
    generator = torch.cuda if device.type == "cuda" else torch.random
    now = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        yield
    finally:
        generator.set_rng_state(now)
