"""4-bit layers: double quantization with the same bits on every device, and the values that a layer computes with.

Double quantization (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) stores the constants of 4-bit blocks in 8 bits.
bitsandbytes leaves the result to the device. For one constant in 1,500 its CPU kernel takes a code next to the nearest
one. The mean that it subtracts first has other last bits on a GPU, and with another number of threads. So an adapter
that a GPU trained would be merged onto other values on a CPU.

Here the codes are the nearest ones, as in the CUDA kernel; only constants midway between two codes may differ from it.
The mean is summed in fp64. The layout is that of bitsandbytes, whose kernels compute with it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState

CONSTANTS_BLOCKSIZE = 256  # constants that share a second constant
VALUE_HASHES = "base_values.json"  # in models/adapter: {module: sha256 of the values that it was trained on}
VALUE_SAMPLES = "base_values.safetensors"  # in models/adapter: a sample of these values
SAMPLE_SIZE = 1024  # values of each module; half a megabyte for a 7B, enough to measure another device's difference


@dataclass(frozen=True)
class BaseValues:
    """The values that a base's 4-bit layers compute with.

    Args:
        hashes: {module: sha256 of its values}.
        samples: {module: SAMPLE_SIZE of its values}.
    """

    hashes: dict[str, str]
    samples: "dict[str, torch.Tensor]"


@cache
def dynamic_map(device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor]":
    """The 256 values of bitsandbytes' 8-bit type, which are sorted, and the 255 midpoints between them."""
    from bitsandbytes.functional import create_dynamic_map

    values = create_dynamic_map()
    return values.to(device), ((values[:-1] + values[1:]) / 2).to(device)


def quantize_constants(constants: "torch.Tensor") -> "tuple[torch.Tensor, QuantState, torch.Tensor]":
    """Quantizes constants (blocks,) in fp32 to 8 bits.

    Returns:
        What a QuantState has as absmax, state2 and offset: codes (blocks,) in uint8, the state that dequantizes them,
        and the mean that is added then.
    """
    import torch
    from bitsandbytes.functional import QuantState

    values, midpoints = dynamic_map(constants.device)
    # numpy's sum has the same order with any number of threads.
    mean = constants.cpu().numpy().mean(dtype="float64")
    offset = torch.tensor(mean, dtype=torch.float32, device=constants.device)
    count, blocksize = len(constants), CONSTANTS_BLOCKSIZE
    blocks = torch.nn.functional.pad(constants - offset, (0, -count % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1)
    normalized = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(normalized, midpoints).to(torch.uint8).flatten()[:count]
    return codes, QuantState(absmax=absmax, code=values, blocksize=blocksize, dtype=torch.float32), offset


def dequantize_constants(codes: "torch.Tensor", state: "QuantState", offset: "torch.Tensor") -> "torch.Tensor":
    """The constants that a layer computes with, from what quantize_constants() returns. Shape (blocks,), fp32."""
    from bitsandbytes.functional import dequantize_blockwise

    return dequantize_blockwise(codes, state) + offset


def double_quantize(layer: "torch.nn.Module") -> None:
    """Quantizes the constants of a Linear4bit in place. They must be in fp32."""
    state = layer.weight.quant_state
    state.absmax, state.state2, state.offset = quantize_constants(state.absmax)
    state.nested = layer.weight.compress_statistics = True


def quantized_modules(model: "torch.nn.Module") -> Iterator[tuple[str, "torch.nn.Module"]]:
    """Yields (name, module) of every 4-bit linear layer."""
    import bitsandbytes

    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            yield name, module


def raw_bytes(tensor: "torch.Tensor") -> memoryview:
    """The bytes of a tensor as safetensors stores them. They are not copied if it is contiguous on the CPU."""
    import torch

    return tensor.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def dequantized(module: "torch.nn.Module") -> "torch.Tensor":
    """The values that a 4-bit layer computes with. Shape (out_features, in_features)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


def sample_positions(count: int) -> "torch.Tensor":
    """Which SAMPLE_SIZE of `count` values are kept as a sample. They are spread evenly."""
    import torch

    return torch.arange(min(SAMPLE_SIZE, count)) * count // min(SAMPLE_SIZE, count)


def base_values(model: "torch.nn.Module") -> BaseValues:
    """The values of all 4-bit layers, with or without adapters on them.

    Args:
        model: as load_model() returns it. For a PeftModel, its get_base_model().
    """
    base = BaseValues({}, {})
    for path, module in quantized_modules(model):
        values = dequantized(module)
        name = path.removesuffix(".base_layer")  # where PEFT keeps the layer that it adapts
        base.hashes[name] = hashlib.sha256(raw_bytes(values)).hexdigest()
        base.samples[name] = values.flatten()[sample_positions(values.numel()).to(values.device)].cpu()
    return base
