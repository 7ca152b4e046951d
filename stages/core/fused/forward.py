"""One forward pass of a layer: what it is called with, what it keeps, and what it drew."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from stages.core.fused.lora import LoraActivations


@dataclass(frozen=True)
class LayerCall:
    """What transformers hands to every layer. cos, sin: (rows, length, size of a head)."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None
    options: dict

    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cos.flatten(0, 1), self.sin.flatten(0, 1)


@dataclass
class Activations:
    """What the backward pass needs of one forward pass.

    Args:
        lora: {linear layer: the activations of its adapter}.
        attention: its inputs q, k, v (rows, length, heads, size) and its output, which is a graph of its own.
        middle: the hidden states between attention and MLP (tokens, width).
        gate: the output of gate_proj (tokens, intermediate).
        up: the output of up_proj (tokens, intermediate).
    """

    lora: dict[str, LoraActivations] = field(default_factory=dict)
    attention: tuple[torch.Tensor, ...] = ()
    middle: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    up: torch.Tensor | None = None


@contextmanager
def replayed_draws(state: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Draws inside the block as from a generator in this state. Afterwards the generator is as it was before."""
    generator = torch.cuda if device.type == "cuda" else torch.random
    current = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        yield
    finally:
        generator.set_rng_state(current)
