"""The faster NF4 quantization gives bitsandbytes' own bits for all weights."""

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from stages._merge import nf4
from stages._merge.nf4 import FOUR_BIT_BLOCK, midpoints, quantized

EVERY = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)  # all values of bf16


def assert_same_bits(rows):
    packed, constants = quantized(rows, "nf4")
    expected, state = quantize_4bit(rows, blocksize=FOUR_BIT_BLOCK, quant_type="nf4")
    assert packed.dtype == expected.dtype
    assert torch.equal(packed, expected)
    assert torch.allclose(constants, state.absmax, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True)
def without_a_way_back(monkeypatch):
    """Makes sure that bitsandbytes' function is not compared with itself."""
    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", None)


@pytest.mark.parametrize("largest", [1.0, 7.3, 0.02, 1e38, 1e-38, 3e-39])
def test_every_value_of_bf16_below_a_constant_has_the_same_code(largest):
    largest = torch.tensor(largest, dtype=torch.bfloat16)
    below = EVERY[EVERY.abs() <= largest]
    below = below[: len(below) // (FOUR_BIT_BLOCK - 1) * (FOUR_BIT_BLOCK - 1)].view(-1, FOUR_BIT_BLOCK - 1)
    assert_same_bits(torch.cat([largest.expand(len(below), 1), below], dim=1))


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0, 50.0])
def test_random_weights_have_the_same_codes(scale):
    rows = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * scale
    assert_same_bits(rows.to(torch.bfloat16))


def test_ties_and_their_neighbours_have_the_same_codes():
    """The values are in fp32, since a scaled bf16 value is rarely exactly on a midpoint."""
    ties = torch.tensor([float(midpoint) for midpoint in midpoints()])
    values = torch.cat([ties, ties.nextafter(torch.tensor(2.0)), ties.nextafter(torch.tensor(-2.0))])
    one = torch.ones(1)
    assert_same_bits(torch.cat([one, values, torch.zeros(FOUR_BIT_BLOCK - len(values) - 1)])[None])


def test_blocks_of_zeros_and_weights_that_are_no_numbers_have_the_same_codes():
    """Tries infinity, and every bf16 value in turn, with those that are not numbers."""
    for rows in (torch.zeros(4, 64), -torch.zeros(4, 64), torch.full((1, 64), torch.inf)):
        assert_same_bits(rows.to(torch.bfloat16))
    assert_same_bits(EVERY.view(-1, 64))


def test_a_block_that_is_not_full_and_fp4_are_left_to_bitsandbytes(monkeypatch):
    asked = []

    def watched(rows, **options):
        asked.append(options["blocksize"])
        return quantize_4bit(rows, **options)

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", watched)
    monkeypatch.setattr(nf4, "quantized_nf4", None)
    rows = torch.randn(150, 30, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert_same_bits(rows)
    packed, constants = quantized(rows, "fp4")
    expected, state = quantize_4bit(rows, blocksize=FOUR_BIT_BLOCK, quant_type="fp4")
    assert torch.equal(packed, expected)
    assert torch.equal(constants, state.absmax)
    assert asked == [FOUR_BIT_BLOCK] * 2  # on some GPUs bitsandbytes' default is another one
