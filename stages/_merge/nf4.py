"""bitsandbytes' quantization to 4 bits, with a faster way on the CPU to the same bits for NF4.

There bitsandbytes searches the nearest of the 16 values for each weight by itself: 20 to 25 ns a weight on one core, of
27 that the whole merge took. Counting with whole-array comparisons how many midpoints lie below it takes 1.4.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

BLOCKSIZE = 64  # weights that share a constant: bitsandbytes' default, which transformers has no option for
SMALLEST = 1e-38  # what bitsandbytes divides by in a block of zeros


def quantized(rows: "torch.Tensor", quant_type: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """(two codes a byte, shape (bytes, 1); the constants) of rows in bf16, block by block of their values in order."""
    from bitsandbytes.functional import quantize_4bit

    # A block that is not full bitsandbytes divides where it multiplies the others, which may round otherwise.
    if quant_type == "nf4" and rows.device.type == "cpu" and rows.numel() % BLOCKSIZE == 0:
        return quantized_nf4(rows)
    packed, state = quantize_4bit(rows, blocksize=BLOCKSIZE, quant_type=quant_type)
    return packed, state.absmax


@cache
def midpoints() -> "list[numpy.float32]":
    """Between the 16 values of NF4, which are sorted."""
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type("nf4", device="cpu")
    return list(((values[:-1] + values[1:]) / 2).numpy())


def quantized_nf4(rows: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """The comparisons are numpy's, whose kernels for them were seven times as fast as torch's."""
    import numpy
    import torch

    blocks = rows.float().view(-1, BLOCKSIZE)
    constants = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / constants.clamp(min=SMALLEST))[:, None]).view(-1).numpy()
    codes = numpy.full(scaled.shape, len(midpoints()), dtype=numpy.uint8)
    within = numpy.empty(scaled.shape, dtype=bool)
    for midpoint in midpoints():
        numpy.less_equal(scaled, midpoint, out=within)
        codes -= within.view(numpy.uint8)
    pairs = torch.from_numpy(codes).view(torch.int16)  # the first code of a pair in the lower byte
    return (pairs << 4 | pairs >> 8).to(torch.uint8)[:, None], constants
