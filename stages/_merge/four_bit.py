"""The 4-bit values of a base's weights, one block of rows at a time."""

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages._merge.nf4 import FOUR_BIT_BLOCK, quantized
from stages._merge.weights import OriginalWeight, StoredTensor
from stages.core.params import Quantization
from stages.core.quantization import dequantize_constants, quantize_constants, raw_bytes, sample_positions

if TYPE_CHECKING:
    import torch


class FourBitWeight:
    """The values of a weight after quantization, as load_model() makes them.

    The first quantization works block by block. Only the second one, of the constants, needs the whole weight.
    """

    def __init__(self, stored: StoredTensor, device: "torch.device | str", quantization: Quantization):
        import torch

        self.stored, self.quant_type, self.digest = stored, quantization.quant_type, hashlib.sha256()
        count = math.prod(stored.shape)
        self.places, self.sample = sample_positions(count), []
        # Allocated whole at the start. Small lasting pieces between temporary ones would fragment the memory.
        self.packed = torch.empty(((count + 1) // 2, 1), dtype=torch.uint8, device=device)
        self.constants = torch.empty(-(count // -FOUR_BIT_BLOCK), device=device)
        for first, rows in OriginalWeight(stored, device).blocks():
            codes_and_constants = quantized(rows.to(torch.bfloat16), quantization.quant_type)
            for part, whole in zip(codes_and_constants, self.parts(first, len(rows)), strict=True):
                whole.copy_(part)
        if quantization.double_quant:
            self.constants = dequantize_constants(*quantize_constants(self.constants))

    def parts(self, first: int, count: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """The packed values and the constants of `count` rows. Row `first` must begin a new quantized block."""
        start, end = (row * self.stored.shape[1] for row in (first, first + count))
        constants = self.constants[start // FOUR_BIT_BLOCK : -(end // -FOUR_BIT_BLOCK)]
        return self.packed[start // 2 : -(end // -2)], constants

    def blocks(self) -> "Iterator[tuple[int, torch.Tensor]]":
        """Yields (first row, rows in bf16) from top to bottom.

        Afterwards `digest` is the SHA-256 of all rows, and `sample` holds the values at `places`, in parts.
        """
        import torch
        from bitsandbytes.functional import QuantState, dequantize_4bit

        for first, last in self.stored.blocks():
            packed, constants = self.parts(first, last - first)
            state = QuantState(
                absmax=constants,
                shape=torch.Size((last - first, self.stored.shape[1])),
                dtype=torch.bfloat16,
                blocksize=FOUR_BIT_BLOCK,
                quant_type=self.quant_type,
            )
            rows = dequantize_4bit(packed, state)
            self.digest.update(raw_bytes(rows))
            start, end = (row * self.stored.shape[1] for row in (first, last))
            inside = self.places[(self.places >= start) & (self.places < end)] - start
            self.sample.append(rows.flatten()[inside.to(rows.device)].cpu())
            yield first, rows
