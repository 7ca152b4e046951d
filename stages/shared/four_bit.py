"""The values that 4-bit layers compute with, and what tells whether another device makes the same ones."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.shared.models import quantized_modules

if TYPE_CHECKING:
    import torch

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
