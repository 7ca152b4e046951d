"""A frozen linear layer with a LoRA adapter, forward and backward, in few passes over memory.

PEFT's 4-bit forward copies the base's output, scales the adapter's output, and adds the two. Each of these is a pass.
Here the adapter's second product is added in place to the base's output, and its scale is a factor of that product.
The base's weight is dequantized for each use, or once if it is held. The results are the same to the bit.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

Weight = Callable[[], torch.Tensor]


def weight_of(base: torch.nn.Module, hold: bool) -> Weight:
    """A function that returns the weight (out, in) of a 4-bit layer in the dtype of the computation.

    Args:
        base: the Linear4bit.
        hold: dequantize it now, once. The 4-bit values are dropped.
    """
    state = base.weight.quant_state
    if not hold:
        return functools.partial(dequantize_4bit, base.weight.data, state)
    base.weight = torch.nn.Parameter(dequantize_4bit(base.weight.data, state), requires_grad=False)
    weight = base.weight.data
    return lambda: weight


def is_plain(module: torch.nn.Module) -> bool:
    """Whether LoraLinear computes what this layer does: 4 bits, no bias, and no adapter or one LoRA that isn't DoRA."""
    if not isinstance(module, LoraLinear4bit):
        return isinstance(module, bitsandbytes.nn.Linear4bit) and module.bias is None
    names = module.active_adapters
    return (
        len(names) == 1
        and not module.lora_variant
        and not module.lora_bias[names[0]]
        and module.base_layer.bias is None
        and not module.merged
    )


@dataclass
class LoraActivations:
    """What the backward pass needs of an adapter's forward pass, besides its input x (tokens, in).

    Args:
        small: dropout(x) @ a.T, of shape (tokens, r). None without an adapter.
        mask: dropout's mask, a byte for each value of x. Its draws are those of PEFT's own forward. None: no dropout.
    """

    small: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class LoraLinear:
    """Computes x @ W.T + scale · dropout(x) @ a.T @ b.T, or x @ W.T where the module has no adapter.

    W (out, in) is frozen; a is (r, in), b is (out, r). Products are computed in the dtype of x. The gradients of a and
    b have the dtype of a and b.

    Args:
        module: bitsandbytes' Linear4bit, or PEFT's layer around it. See is_plain().
        hold: see weight_of().
    """

    def __init__(self, module: torch.nn.Module, hold: bool):
        self.module = module
        self.adapted = isinstance(module, LoraLinear4bit)
        self.name = module.active_adapters[0] if self.adapted else None
        self.weight = weight_of(module.base_layer if self.adapted else module, hold)

    def parameters(self) -> list[torch.nn.Parameter]:
        """[a, b], or nothing."""
        return [self.module.lora_A[self.name].weight, self.module.lora_B[self.name].weight] if self.adapted else []

    @property
    def scale(self) -> float:
        return self.module.scaling[self.name]

    @property
    def rate(self) -> float:
        # Without dropout PEFT has an Identity there.
        return getattr(self.module.lora_dropout[self.name], "p", 0.0) if self.module.training else 0.0

    def adapter(self, x: torch.Tensor) -> LoraActivations:
        """The first half of the adapter, on x (tokens, in)."""
        if not self.adapted:
            return LoraActivations()
        a, _ = self.parameters()
        dropped, mask = torch.native_dropout(x, self.rate, True) if self.rate else (x, None)
        return LoraActivations(dropped @ a.to(x.dtype).T, mask)

    def product(self, x: torch.Tensor, lora: LoraActivations) -> torch.Tensor:
        """The output (tokens, out). lora: adapter(x)."""
        out = torch.nn.functional.linear(x, self.weight())
        if self.adapted:
            out.addmm_(lora.small, self.parameters()[1].to(x.dtype).T, alpha=self.scale)
        return out

    def input_gradient(
        self, gradient: torch.Tensor, lora: LoraActivations, total: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The gradient of x, from that of the output (tokens, out). It is added to `total` in place, if given."""
        weight = self.weight()
        total = gradient @ weight if total is None else total.addmm_(gradient, weight)
        if not self.adapted:
            return total
        a, b = (parameter.to(gradient.dtype) for parameter in self.parameters())
        small = gradient @ b
        if lora.mask is None:
            return total.addmm_(small, a, alpha=self.scale)
        rescale = self.scale / (1 - self.rate)
        return total.add_(torch.ops.aten.native_dropout_backward(small @ a, lora.mask, rescale))

    def adapter_gradients(self, gradient: torch.Tensor, x: torch.Tensor, lora: LoraActivations) -> list[torch.Tensor]:
        """The gradients of parameters(), from that of the output (tokens, out)."""
        if not self.adapted:
            return []
        a, b = self.parameters()
        dropped = x
        if lora.mask is not None:
            dropped = torch.ops.aten.native_dropout_backward(x, lora.mask, 1 / (1 - self.rate))
        a_gradient = ((gradient @ b.to(x.dtype)).T @ dropped).to(a.dtype).mul_(self.scale)
        b_gradient = (gradient.T @ lora.small).to(b.dtype).mul_(self.scale)
        return [a_gradient, b_gradient]
