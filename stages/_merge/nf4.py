"""bitsandbytes' quantization to 4 bits, and a faster way to the same bits for NF4 on the CPU.

On the CPU bitsandbytes searches the nearest of the 16 values for each weight. This took 20 to 25 ns a weight on one
core, of 27 ns for the whole merge. Here each weight's code is the number of midpoints below it. Comparisons of whole
arrays count them in 1.4 ns a weight.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

FOUR_BIT_BLOCK = 64  # weights that share a constant; bitsandbytes' default, for which transformers has no option
SMALLEST = 1e-38  # bitsandbytes' divisor in a block of zeros


def quantized(rows: "torch.Tensor", quant_type: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Quantizes rows in bf16, block by block of their values in order.

    Returns:
        (two codes a byte, of shape (bytes, 1); the constants of the blocks)
    """
    from bitsandbytes.functional import quantize_4bit

    # bitsandbytes divides in a block that is not full, and multiplies in the others. The two may round differently.
    if quant_type == "nf4" and rows.device.type == "cpu" and rows.numel() % FOUR_BIT_BLOCK == 0:
        return quantized_nf4(rows)
    packed, state = quantize_4bit(rows, blocksize=FOUR_BIT_BLOCK, quant_type=quant_type)
    return packed, state.absmax


@cache
def midpoints() -> "list[numpy.float32]":
    """The 15 midpoints between the 16 sorted values of NF4."""
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type("nf4", device="cpu")
    return list(((values[:-1] + values[1:]) / 2).numpy())


def quantized_nf4(rows: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """quantized() for NF4 on the CPU. It compares with numpy, whose kernels were seven times as fast as torch's."""
    import numpy
    import torch

    blocks = rows.float().view(-1, FOUR_BIT_BLOCK)
    constants = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / constants.clamp(min=SMALLEST))[:, None]).view(-1).numpy()
    codes = numpy.full(scaled.shape, len(midpoints()), dtype=numpy.uint8)
    within = numpy.empty(scaled.shape, dtype=bool)
    for midpoint in midpoints():
        numpy.less_equal(scaled, midpoint, out=within)
        codes -= within.view(numpy.uint8)
    pairs = torch.from_numpy(codes).view(torch.int16)  # the first code of a pair in the lower byte
    return (pairs << 4 | pairs >> 8).to(torch.uint8)[:, None], constants
