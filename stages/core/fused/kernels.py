"""What a decoder layer computes between its matrix products, each a single pass over memory on a GPU.

They are formulas in plain PyTorch. On CUDA torch.compile makes one kernel of each; on the CPU, and where there is no C
compiler for Triton, they run operation by operation. All take and give the hidden states of `tokens` in one row after
the other, in the dtype of the training, and compute their reductions in fp32 as transformers' Mistral does.
"""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch


@functools.cache
def compiler() -> str | None:
    """None where CUDA kernels can be compiled, or what is missing for it."""
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "a C compiler"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} (the package python3-dev)"


def kernel(function: Callable) -> Callable:
    compiled = torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(*tensors: torch.Tensor):
        if not tensors[0].is_cuda or compiler():
            return function(*tensors)
        for tensor in tensors:
            if tensor.dim() > 1:
                # Else the first batch's number of tokens would be compiled in, and the second batch's kernels might
                # sum up in another order: a resumed training would not repeat its bits.
                torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(*tensors)

    return call


def normalized(x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
    """(x + y, its RMSNorm)"""
    total = x + y
    return total, weight * normalized(total, eps)[0].to(x.dtype)


@kernel
def norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, beside: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """The gradient of x from that of its RMSNorm, added to `beside`, what reached x on the way round the norm."""
    ones, scale = normalized(x, eps)
    through = (gradient * weight).float()
    through = scale * (through - ones * (through * ones).mean(-1, keepdim=True))
    return beside + through.to(x.dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@kernel
def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of q, k (tokens, heads, size) by the angles of cos, sin (tokens, size), which hold each angle
    twice. With -sin it turns them back, which is also its backward pass.
    """
    cos, sin = cos[:, None], sin[:, None]
    return turned(q, cos, sin), turned(k, cos, sin)


@kernel
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


@kernel
def swiglu_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(swiglu(gate, up) once more, the gradient of gate, that of up)"""
    silu = torch.nn.functional.silu(gate)
    of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
    return silu * up, of_gate, gradient * silu
