"""A frozen linear layer with a LoRA adapter, forward and backward, in as few passes over memory as they need.

PEFT's 4-bit forward copies the base's output, scales the adapter's and adds the two, each in a pass of its own. Here
the adapter's second product is added where the base's output lies, its scale a factor of that product. The base's
weight is dequantized for each use, or was once and is kept (`hold`): the numbers, and so the results, are the same.
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
    """With `hold` the 4-bit values give way to the weight they stand for, in the dtype of the computation."""
    state = base.weight.quant_state
    if not hold:
        return functools.partial(dequantize_4bit, base.weight.data, state)
    base.weight = torch.nn.Parameter(dequantize_4bit(base.weight.data, state), requires_grad=False)
    weight = base.weight.data
    return lambda: weight


def is_plain(module: torch.nn.Module) -> bool:
    """Whether Linear computes what this layer does: 4 bits, no bias, and either no adapter or one LoRA, not DoRA."""
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
class Used:
    """Of one forward pass, what the backward pass needs beside the input x (tokens, in): of the adapter dropout(x) @
    a.T (tokens, r), and dropout's mask, a byte a value. Its draws are those that PEFT's own forward would take.
    """

    small: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class Linear:
    """x @ W.T + scale · dropout(x) @ a.T @ b.T for W (out, in) frozen, a (r, in), b (out, r); or x @ W.T alone.

    The products are computed in the dtype of x, the gradients of a and b are in theirs.
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

    def adapter(self, x: torch.Tensor) -> Used:
        if not self.adapted:
            return Used()
        a, _ = self.parameters()
        kept, mask = torch.native_dropout(x, self.rate, True) if self.rate else (x, None)
        return Used(kept @ a.to(x.dtype).T, mask)

    def product(self, x: torch.Tensor, used: Used) -> torch.Tensor:
        out = torch.nn.functional.linear(x, self.weight())
        if self.adapted:
            out.addmm_(used.small, self.parameters()[1].to(x.dtype).T, alpha=self.scale)
        return out

    def of_input(self, gradient: torch.Tensor, used: Used, total: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient of x, added to `total` in place where one is given. gradient: (tokens, out)."""
        weight = self.weight()
        total = gradient @ weight if total is None else total.addmm_(gradient, weight)
        if not self.adapted:
            return total
        a, b = (parameter.to(gradient.dtype) for parameter in self.parameters())
        small = gradient @ b
        if used.mask is None:
            return total.addmm_(small, a, alpha=self.scale)
        rescale = self.scale / (1 - self.rate)
        return total.add_(torch.ops.aten.native_dropout_backward(small @ a, used.mask, rescale))

    def of_adapter(self, gradient: torch.Tensor, x: torch.Tensor, used: Used) -> list[torch.Tensor]:
        """The gradients of parameters()."""
        if not self.adapted:
            return []
        a, b = self.parameters()
        kept = x
        if used.mask is not None:
            kept = torch.ops.aten.native_dropout_backward(x, used.mask, 1 / (1 - self.rate))
        of_a = ((gradient @ b.to(x.dtype)).T @ kept).to(a.dtype).mul_(self.scale)
        of_b = (gradient.T @ used.small).to(b.dtype).mul_(self.scale)
        return [of_a, of_b]
