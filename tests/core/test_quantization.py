"""Double quantization has bitsandbytes' layout and the same values on a CPU and on CUDA."""

import hashlib
import math
from pathlib import Path

import numpy
import pytest
import torch
from bitsandbytes.functional import (
    QuantState,
    create_dynamic_map,
    dequantize_4bit,
    quantize_4bit,
    quantize_blockwise,
)
from safetensors.torch import load_file

from stages.core import quantization
from stages.core.quantization import (
    CONSTANTS_BLOCKSIZE,
    dequantize_constants,
    dequantized,
    double_quantize,
    quantize_constants,
    raw_bytes,
)
from tests.support.layers import layer_of

# (rows, columns, largest, seed): sha256 of the NF4 values with double quantization that bitsandbytes 0.50.2 made with
# its CUDA kernels on an H100 (there by numpy's power of three, which rounds 15 of the 4 million weights otherwise).
ON_CUDA = {
    (1024, 4096, 0.02, 0): "f6c2fa2838931d5ea3c5c7cbcf2c7a6d61426f75f7c9d135e2c0c319f9721b71",
    (256, 256, 0.05, 1): "59336b91865dc85c25726973a4c2cc60ff18119f28838070ad02bfef261273f4",
    (512, 1408, 0.02, 2): "1c2bdd3051e7a11943d3d220cd88812d806252be33e040811fcd09288b8a667d",
    (150, 30, 0.02, 3): "23d63a29289c2e746f087aefc028310f39c9b58771b5da04ba3b370623076121",
}


def weights(rows, columns, largest, seed):
    """Of a generator whose numbers do not depend on numpy's version or the machine."""
    drawn = numpy.random.RandomState(seed).uniform(-1, 1, (rows, columns)).astype("float32")
    return torch.from_numpy(drawn * drawn * drawn * numpy.float32(largest)).to(torch.bfloat16)


def constants(seed=0, count=5000):
    return torch.from_numpy(numpy.random.RandomState(seed).uniform(0.01, 0.08, count).astype("float32"))


def digest(values):
    return hashlib.sha256(raw_bytes(values)).hexdigest()


@pytest.mark.parametrize("shape", ON_CUDA)
def test_on_the_cpu_a_layer_has_the_values_of_bitsandbytes_on_cuda(shape):
    layer = layer_of(weights(*shape))
    double_quantize(layer)
    assert digest(dequantized(layer)) == ON_CUDA[shape]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ON_CUDA)
def test_on_cuda_a_layer_has_the_values_that_it_has_on_the_cpu_and_bitsandbytes_own(shape):
    layer = layer_of(weights(*shape), "cuda")
    double_quantize(layer)
    assert digest(dequantized(layer)) == ON_CUDA[shape]
    assert torch.equal(
        dequantized(layer),
        dequantize_4bit(*quantize_4bit(weights(*shape).cuda(), compress_statistics=True, quant_type="nf4")),
    )


def test_on_the_cpu_constants_have_the_codes_of_bitsandbytes_on_cuda_where_its_own_there_are_others():
    """The file: of 512 × 1,408 normal weights, as bitsandbytes 0.50.2 quantized them on an H100."""
    found = load_file(Path(__file__).parent / "constants_on_cuda.safetensors")
    given = found["constants"].float()
    codes, state, offset = quantize_constants(given)
    assert torch.equal(codes, found["codes"]) and torch.equal(state.absmax, found["absmax"])
    assert offset == found["offset"]
    assert not torch.equal(quantize_blockwise(given - offset, blocksize=CONSTANTS_BLOCKSIZE)[0], codes)


def test_constants_are_quantized_on_their_own_device(monkeypatch):
    """Another default device is set, as a stand-in for a GPU next to the CPU."""
    given, asked = constants(), []
    expected, maps = quantize_constants(given), quantization.dynamic_map(given.device)
    monkeypatch.setattr(quantization, "dynamic_map", lambda device: asked.append(device) or maps)
    with torch.device("meta"):
        codes, state, offset = quantize_constants(given)
    assert asked == [given.device]
    assert torch.equal(codes, expected[0]) and torch.equal(state.absmax, expected[1].absmax) and offset == expected[2]


def test_codes_are_the_nearest_where_bitsandbytes_on_the_cpu_takes_a_neighbour_of_some():
    given = constants(count=200_000)
    codes, second, offset = quantize_constants(given)
    theirs, state = quantize_blockwise(given - offset, blocksize=CONSTANTS_BLOCKSIZE)
    assert torch.equal(second.absmax, state.absmax) and torch.equal(second.code, state.code)
    scaled = (given - offset).double() / second.absmax.repeat_interleave(CONSTANTS_BLOCKSIZE)[: len(given)].double()
    ours, other = ((second.code.double()[each.int()] - scaled).abs() for each in (codes, theirs))
    nearest = (second.code.double() - scaled[:10_000, None]).abs().amin(dim=1)
    torch.testing.assert_close(ours[:10_000], nearest, rtol=0, atol=1e-7)
    different = codes != theirs
    assert 0 < different.float().mean() < 0.002
    assert (ours[different] < other[different]).all()


def test_the_mean_is_the_nearest_to_the_exact_one_with_any_number_of_threads():
    """PyTorch's own is not, of some of these with one thread and of others with two."""
    theirs, before = [], torch.get_num_threads()
    for seed in (2, 4):
        given, found = constants(seed, 1 << 20), []
        exact = numpy.float32(math.fsum(given.tolist()) / len(given))
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(quantize_constants(given))
                theirs.append(given.mean().item() == exact)
        finally:
            torch.set_num_threads(before)
        (codes, state, offset), (again, other, same) = found
        assert offset == same == exact
        assert torch.equal(codes, again) and torch.equal(state.absmax, other.absmax)
    assert not all(theirs), "no sum here tells the exact mean from another"


def test_a_layer_computes_with_the_restored_constants():
    weight = weights(256, 256, 0.05, 1)
    layer = layer_of(weight)
    state = layer.weight.quant_state
    plain = state.absmax
    double_quantize(layer)
    assert state.nested and layer.weight.compress_statistics and state.absmax.dtype == torch.uint8
    again = dequantize_constants(state.absmax, state.state2, state.offset)
    assert (again - plain).abs().max() < 0.03 * plain.max() and not torch.equal(again, plain)
    whole = QuantState(again, weight.shape, blocksize=64, quant_type="nf4", dtype=torch.bfloat16)
    assert torch.equal(dequantized(layer), dequantize_4bit(layer.weight.data, whole))
    some = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    torch.testing.assert_close(layer(some), some @ dequantized(layer).T, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("given", [torch.zeros(300), torch.full((300,), 0.25), torch.tensor([0.5])])
def test_constants_that_are_all_the_same_come_back_as_they_were(given):
    assert torch.equal(dequantize_constants(*quantize_constants(given)), given)


@pytest.mark.parametrize("place", [0, 1, 200])
def test_the_mean_counts_small_constants_next_to_a_large_one(place):
    """In fp32 16,777,216 + 1 is 16,777,216, so a sum in fp32 would lose some of the ones."""
    block = torch.ones(256)
    block[place] = 1 << 24
    for given in (block, block.repeat(64)):
        assert quantize_constants(given)[2].item() == numpy.float32((2**24 + 255) / 256)


def test_a_constant_midway_between_two_codes_takes_the_lower_one():
    """Both are equally near, so all devices need one rule. The block has the mean 0 and the largest value 1."""
    values = create_dynamic_map()
    exact, midpoints = values.double(), (values[:-1] + values[1:]) / 2
    is_midway = (exact[:-1] + exact[1:] == 2 * midpoints.double()) & torch.isin(midpoints, -midpoints)
    expected = is_midway.nonzero()[:, 0]
    assert 100 < len(expected) <= CONSTANTS_BLOCKSIZE - 2
    given = torch.cat((midpoints[expected], torch.tensor([1.0, -1.0])))
    codes, state, offset = quantize_constants(given)
    assert (offset, state.absmax.tolist()) == (0, [1])
    codes, given = codes[: len(expected)].long(), given[: len(expected)].double()
    below, above = given - exact[codes], exact[codes + 1] - given
    assert torch.equal(below, above) and (below > 0).all()
    assert torch.equal(codes, expected)
