"""The forward and backward pass of a frozen layer with a LoRA adapter, in as few passes over memory as they need.

PEFT's 4-bit forward copies the base's output, scales the adapter's and adds the two, each in a pass of its own. Here
the adapter's second product is added where the base's output lies, its scale a factor of that product. The base's
weight is dequantized for each use, or was once and is kept (`hold`): the numbers, and so the results, are the same.
"""

import functools
from collections.abc import Callable

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

Weight = Callable[[], torch.Tensor]


class FrozenLinear(torch.autograd.Function):
    """x (…, in) and weight() (out, in) → (…, out). The weight is not kept for the backward pass but asked for again."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, weight())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient @ ctx.weight(), None


class LoraLinear(torch.autograd.Function):
    """x @ W.T + scale · dropout(x) @ a.T @ b.T for x (…, in), W (out, in) frozen, a (r, in), b (out, r).

    The products are computed in the dtype of x, the gradients of a and b are in theirs. Of dropout the backward pass
    keeps one byte a value, not the values; its draws are those that PEFT's own forward would take.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 apply() takes no names
        ctx, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: Weight, scale: float, dropout: float
    ):
        flat = x.reshape(-1, x.shape[-1])
        out = torch.nn.functional.linear(flat, weight())
        mask, kept = None, flat
        if dropout:
            kept, mask = torch.native_dropout(flat, dropout, True)
        small = kept @ a.to(x.dtype).T
        out.addmm_(small, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(flat, mask, small, a, b)
        ctx.weight, ctx.scale, ctx.rescale, ctx.shape = weight, scale, 1 / (1 - dropout), x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        flat, mask, small, a, b = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        small_gradient = gradient @ b.to(flat.dtype)
        of_b = (gradient.T @ small).to(b.dtype).mul_(ctx.scale)
        kept = flat if mask is None else torch.ops.aten.native_dropout_backward(flat, mask, ctx.rescale)
        of_a = (small_gradient.T @ kept).to(a.dtype).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.weight()
            if mask is None:
                of_x.addmm_(small_gradient, a.to(flat.dtype), alpha=ctx.scale)
            else:
                through = small_gradient @ a.to(flat.dtype)
                of_x.add_(torch.ops.aten.native_dropout_backward(through, mask, ctx.scale * ctx.rescale))
            of_x = of_x.view(ctx.shape)
        return of_x, of_a, of_b, None, None, None


def weight_of(base: torch.nn.Module, hold: bool) -> Weight:
    """With `hold` the 4-bit values give way to the weight they stand for, in the dtype of the computation."""
    state = base.weight.quant_state
    if not hold:
        return functools.partial(dequantize_4bit, base.weight.data, state)
    base.weight = torch.nn.Parameter(dequantize_4bit(base.weight.data, state), requires_grad=False)
    weight = base.weight.data
    return lambda: weight


def is_plain(module: torch.nn.Module) -> bool:
    """Whether PEFT would compute just what LoraLinear does; DoRA and other variants keep PEFT's forward."""
    names = module.active_adapters
    return (
        len(names) == 1
        and not module.lora_variant
        and not module.lora_bias[names[0]]
        and module.base_layer.bias is None
        and not module.merged
    )


def forward_of(module: LoraLinear4bit, weight: Weight) -> Callable[[torch.Tensor], torch.Tensor]:
    name = module.active_adapters[0]
    rate = getattr(module.lora_dropout[name], "p", 0.0)  # without dropout PEFT has an Identity there

    def forward(x: torch.Tensor) -> torch.Tensor:
        a, b, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
        return LoraLinear.apply(x, a, b, weight, scale, rate if module.training else 0.0)

    return forward


def fuse(model: torch.nn.Module, hold: bool) -> int:
    """Gives the 4-bit layers of a PEFT model the passes above, and returns how many layers keep PEFT's own.

    To be called when the adapters have the dtype and device they are trained in. With `hold` those that keep PEFT's
    forward stay in 4 bits too, since PEFT looks at these.
    """
    adapted, left = set(), 0
    for module in model.modules():
        if isinstance(module, LoraLinear4bit):
            adapted.add(module.base_layer)
            if is_plain(module):
                module.forward = forward_of(module, weight_of(module.base_layer, hold))
            else:
                left += 1
    for module in model.modules():
        plain = isinstance(module, bitsandbytes.nn.Linear4bit) and module.bias is None
        if plain and module not in adapted:
            module.forward = frozen_forward(weight_of(module, hold))
    return left


def frozen_forward(weight: Weight) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: FrozenLinear.apply(x, weight)
