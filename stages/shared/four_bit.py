"""The values that 4-bit layers compute with, and what tells whether another device makes the same ones."""

import hashlib
from typing import TYPE_CHECKING

from stages.shared.models import quantized_modules

if TYPE_CHECKING:
    import torch

VALUES = "base_values.json"  # in models/adapter: {module: sha256 of the values it was trained on}


def raw_bytes(tensor: "torch.Tensor") -> memoryview:
    """The bytes of a tensor as safetensors stores them, without a copy where it lies on the CPU in one piece."""
    import torch

    return tensor.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def dequantized(module: "torch.nn.Module") -> "torch.Tensor":
    """The values a 4-bit layer computes with. Shape (out_features, in_features)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


def value_hashes(model: "torch.nn.Module") -> dict[str, str]:
    """{module name in the base: sha256 of its dequantized values}, of all 4-bit layers, with adapters on them or not.

    model: as load_model() gives it; of a PeftModel its get_base_model().
    """
    # PEFT keeps the layer that it adapts under `base_layer`.
    return {
        name.removesuffix(".base_layer"): hashlib.sha256(raw_bytes(dequantized(module))).hexdigest()
        for name, module in quantized_modules(model)
    }
