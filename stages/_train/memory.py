"""How much memory a training takes, counted from the base's config, and what is kept there to be fast.

What a layer keeps for the backward pass is counted in stages/_train/activations.py.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from stages._train.activations import Shape, is_dora, is_fused, layer_activations, states_bytes, targets
from stages._train.loss import CHUNK
from stages.shared.params import Params

GIB = 1 << 30
OVERHEAD = GIB  # of the CUDA context, its libraries' workspaces
MOMENTS = {"adamw": 8, "adamw_8bit": 2 + 8 / 256}  # bytes of AdamW's state a weight; 256 codes share a scale
SLACK = 1.1  # blocks of the allocator that are too small for what is asked of it


@dataclass(frozen=True)
class Keep:
    """Of how many layers, counted from the last, what stays in memory instead of being computed again in each step."""

    activations: int  # what the backward pass needs of the layer, not only its input
    weights: int  # the base dequantized, 2 bytes a weight, not 4 bits
    offload: bool = False  # the inputs of layers whose activations are not kept wait in the host's memory

    def __str__(self) -> str:
        inputs = ", the layers' inputs in the host's memory" if self.offload else ""
        return f"activations of {self.activations} layers, 16-bit weights of {self.weights}{inputs}"


PINNED = ("both", "activations", "weights", "low", "offload")  # the values of machine.memory but auto


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a step. activations: those that are kept; layer: while one layer's gradients are computed;
    logits: while the loss is, with the states around it. These two are not in memory at the same time."""

    base: int
    adapter: int
    optimizer: int
    activations: int
    layer: int
    logits: int

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.optimizer + self.activations + max(self.layer, self.logits)

    def fits(self, budget: int) -> bool:
        return self.total * SLACK + OVERHEAD <= budget


def processes(params: Params) -> int:
    """Among which the base is shared out."""
    machine = params.machine
    if machine.sharding == "none":
        return 1
    if machine.devices != "auto":
        return machine.devices * machine.nodes
    from stages._train.launch import devices

    return devices(params) * machine.nodes


def estimate(shape: Shape, params: Params, keep: Keep, length: int, varlen: bool) -> Estimate:
    """For a full batch: train.batch_size rows of `length` tokens, all of them trained."""
    tokens = params.train.batch_size * length
    weights = shape.layers * sum(a * b for a, b in shape.widths.values())
    constants = (1 / 64 + 4 / (64 * 256)) if params.quantization.double_quant else 4 / 64  # bytes a weight
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + (2 * shape.layers + 1) * shape.hidden
    bytes_each = {4: 0.5, 8: 1, 16: 2}[params.quantization.bits]
    held = keep.weights / shape.layers
    packed = weights * (2 * held + bytes_each * (1 - held))
    if (count := processes(params)) > 1:  # two layers are whole while one of them computes
        packed *= 1 / count + 2 / shape.layers
    base = int(packed + (weights * constants * (1 - held) if params.quantization.bits == 4 else 0))
    adapted = [shape.widths[name] for name in targets(shape, params)]
    trained = shape.layers * params.lora.r * sum(a + b for a, b in adapted)
    layer = tokens * layer_activations(shape, params, varlen)
    inputs = 2 if keep.offload else shape.layers - keep.activations  # of the layer at work and of its neighbour
    kept = keep.activations * layer + inputs * states_bytes(params) * tokens * shape.hidden
    if is_dora(params) and params.lora.dropout:  # the base's product is then one of its own, over weights in 16 bits
        kept += keep.activations * 2 * sum(a * b for a, b in adapted)
    # While a layer's gradients are computed: its activations where no layer kept any, in its MLP four of what lies
    # between its products, the gradients around it, and a dequantized weight.
    working = (0 if keep.activations else layer) + tokens * 2 * (4 * shape.intermediate + shape.hidden)
    working += 0 if keep.weights == shape.layers else 2 * max(a * b for a, b in shape.widths.values())
    if is_dora(params):  # PEFT sends a unit matrix through the adapter, to have the length of each row of weights
        working += max(6 * a * a + 16 * a * b for a, b in adapted)
    ends = tokens * shape.hidden * (4 + 2 + 2 + 2)  # the last norm's input, its output, the gradients of both
    # Logits, the same in fp32, a temporary, probabilities.
    chunk = min(CHUNK["cuda"], tokens) * shape.vocabulary * (2 + 4 + 4 + 2)
    return Estimate(
        base=base + 2 * embeddings,
        adapter=4 * trained,
        optimizer=trained * MOMENTS[params.train.optimizer] + 4 * trained,  # and the gradients in fp32
        activations=kept,
        layer=working,
        logits=ends + chunk,
    )


def machine_memory() -> int:
    """Bytes that this machine, or its control group, gives to a process."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


def device_memory(cuda: bool) -> int:
    """Bytes of the device in all, whoever uses them now: the choice must not depend on a moment."""
    if not cuda:
        return machine_memory()
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def pinned(name: str, shape: Shape, params: Params) -> Keep:
    every, fused = shape.layers, is_fused(params)
    return Keep(
        activations=every if name in ("both", "activations") else 0,
        weights=every if name in ("both", "weights") and fused else 0,
        offload=name == "offload" and fused,
    )


def choose(  # noqa: PLR0913, PLR0917
    shape: Shape, params: Params, length: int, varlen: bool, budget: int, cuda: bool = True
) -> Keep:
    """What machine.memory says, or for `auto` as much as fits `budget` bytes; the least where even that does not fit.

    Activations come first: of a 7B on an H100, a gigabyte of them saves four times the time that a gigabyte of weights
    does, which costs one pass of dequantizing a use, however many tokens there are.
    """
    every, fused = shape.layers, is_fused(params)
    if params.machine.memory != "auto":
        return pinned(params.machine.memory, shape, params)

    def fits(keep: Keep) -> bool:
        return estimate(shape, params, keep, length, varlen).fits(budget)

    steps = range(every, -1, -1) if fused else (every, 0)
    activations = next((number for number in steps if fits(Keep(number, 0))), 0)
    if activations < every or not fused:
        # On a CPU the host's memory is no other.
        return Keep(activations, 0, offload=cuda and fused and not fits(Keep(activations, 0)))
    return Keep(every, next(number for number in steps if fits(Keep(every, number))))
