"""Double quantization (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): the constants of 4-bit blocks, in 8 bits
themselves, with the same bits on every device.

bitsandbytes' own leaves that to the device. Its CPU kernel takes a code beside the nearest one for one in 1,500
constants, and the mean that is taken off before has other last bits on a GPU and with other numbers of threads; so an
adapter that a GPU trained would be merged onto other values on a CPU. Here the codes are the nearest, as in its CUDA
kernel but for constants midway between two, and the mean is summed in fp64. The layout is that of bitsandbytes, whose
kernels compute with it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState


BLOCKSIZE = 256  # constants that share a second one


@cache
def dynamic_map(device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor]":
    """The 256 values of bitsandbytes' 8-bit type, which are sorted, and the 255 midpoints between them."""
    from bitsandbytes.functional import create_dynamic_map

    values = create_dynamic_map()
    return values.to(device), ((values[:-1] + values[1:]) / 2).to(device)


def quantize_constants(constants: "torch.Tensor") -> "tuple[torch.Tensor, QuantState, torch.Tensor]":
    """constants (blocks,) in fp32 → their codes (blocks,) in uint8, the state that dequantizes these, and the mean that
    is added then: what a QuantState has as absmax, state2 and offset."""
    import torch
    from bitsandbytes.functional import QuantState

    values, midpoints = dynamic_map(constants.device)
    # numpy's sum is in the same order with any number of threads.
    mean = constants.cpu().numpy().mean(dtype="float64")
    offset = torch.tensor(mean, dtype=torch.float32, device=constants.device)
    count = len(constants)
    blocks = torch.nn.functional.pad(constants - offset, (0, -count % BLOCKSIZE)).view(-1, BLOCKSIZE)
    absmax = blocks.abs().amax(dim=1)
    normalized = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(normalized, midpoints).to(torch.uint8).flatten()[:count]
    return codes, QuantState(absmax=absmax, code=values, blocksize=BLOCKSIZE, dtype=torch.float32), offset


def dequantize_constants(codes: "torch.Tensor", state: "QuantState", offset: "torch.Tensor") -> "torch.Tensor":
    """Of quantize_constants() the inverse: what a layer computes with. Shape (blocks,), fp32."""
    from bitsandbytes.functional import dequantize_blockwise

    return dequantize_blockwise(codes, state) + offset


def double_quantize(layer: "torch.nn.Module") -> None:
    """In place, of a Linear4bit whose constants are in fp32."""
    state = layer.weight.quant_state
    state.absmax, state.state2, state.offset = quantize_constants(state.absmax)
    state.nested = layer.weight.compress_statistics = True


def quantized_modules(model: "torch.nn.Module") -> Iterator[tuple[str, "torch.nn.Module"]]:
    """(name, module) of every 4-bit linear layer."""
    import bitsandbytes

    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            yield name, module


# The values that 4-bit layers compute with, and what tells whether another device makes the same ones.


VALUES = "base_values.json"  # in models/adapter: {module: sha256 of the values it was trained on}
SAMPLES = "base_values.safetensors"  # beside it: some of these values
SAMPLE = 1024  # of each module: of a 7B half a megabyte, enough to see how far another device's are from them


def raw_bytes(tensor: "torch.Tensor") -> memoryview:
    """The bytes of a tensor as safetensors stores them, without a copy where it lies on the CPU in one piece."""
    import torch

    return tensor.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def dequantized(module: "torch.nn.Module") -> "torch.Tensor":
    """The values a 4-bit layer computes with. Shape (out_features, in_features)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


@dataclass(frozen=True)
class Values:
    """hashes: {module: sha256 of the 4-bit values it computes with}; samples: {module: SAMPLE of these}."""

    hashes: dict[str, str]
    samples: "dict[str, torch.Tensor]"


def places(count: int) -> "torch.Tensor":
    """Of `count` values, the SAMPLE ones that are kept, spread evenly."""
    import torch

    return torch.arange(min(SAMPLE, count)) * count // min(SAMPLE, count)


def values_of(model: "torch.nn.Module") -> Values:
    """Of all 4-bit layers, with adapters on them or not. model: as load_model() gives it; of a PeftModel its
    get_base_model()."""
    found = Values({}, {})
    for place, module in quantized_modules(model):
        values = dequantized(module)
        name = place.removesuffix(".base_layer")  # PEFT keeps the layer that it adapts there
        found.hashes[name] = hashlib.sha256(raw_bytes(values)).hexdigest()
        found.samples[name] = values.flatten()[places(values.numel()).to(values.device)].cpu()
    return found
