"""What a decoder layer computes between its matrix products, each in a single pass over memory on a GPU.

The functions are plain PyTorch. On CUDA torch.compile makes one kernel of each. On the CPU, and without a C compiler
for Triton, they run operation by operation. Hidden states have the shape (tokens, width), with all rows of a batch one
after the other, and the dtype of the training. Reductions are in fp32, as in transformers' Mistral.
"""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch


@functools.cache
def missing_compiler() -> str | None:
    """What is missing to compile CUDA kernels, or None."""
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "a C compiler"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} (the package python3-dev)"


def kernel(function: Callable) -> Callable:
    """Makes a function of tensors run as one kernel on CUDA, where that can be compiled."""
    compiled = torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(*tensors: torch.Tensor):
        if not tensors[0].is_cuda or missing_compiler():
            return function(*tensors)
        for tensor in tensors:
            if tensor.dim() > 1:
                # Without this the first batch's number of tokens would be compiled in. The second batch's kernels
                # might then sum in another order, and a resumed training would not repeat its bits.
                torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(*tensors)

    return call


def normalized(x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (tokens, width) with a mean square of 1 in each row, and the factors (tokens, 1), both in fp32."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * scale, scale


@kernel
def norm(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """RMSNorm of x (tokens, width). eps: a scalar in fp32."""
    return weight * normalized(x, eps)[0].to(x.dtype)


@kernel
def add_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y (tokens, width), and its RMSNorm."""
    total = x + y
    return total, weight * normalized(total, eps)[0].to(x.dtype)


@kernel
def norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """The gradient of x from that of its RMSNorm, plus `residual`, the gradient that reached x past the norm."""
    ones, scale = normalized(x, eps)
    through = (gradient * weight).float()
    through = scale * (through - ones * (through * ones).mean(-1, keepdim=True))
    return residual + through.to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@kernel
def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of q, k (tokens, heads, size) by the angles of cos, sin (tokens, size), which hold each twice.

    With -sin it turns them back, which is also its backward pass.
    """
    cos, sin = cos[:, None], sin[:, None]
    return rotated(q, cos, sin), rotated(k, cos, sin)


@kernel
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, all of shape (tokens, intermediate)."""
    return torch.nn.functional.silu(gate) * up


@kernel
def swiglu_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """swiglu(gate, up) again, the gradient of gate, and the gradient of up."""
    silu = torch.nn.functional.silu(gate)
    gate_gradient = torch.ops.aten.silu_backward(gradient * up, gate)
    return silu * up, gate_gradient, gradient * silu
