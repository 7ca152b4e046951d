"""What a layer keeps for the backward pass, counted from the base's config.

The counts are of tensors: they were listed from transformers' Mistral with the passes of stages/core/fused/lora.py,
or with PEFT's modules, and a test compares the lists with what PyTorch really keeps.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from stages.core.params import Params


@dataclass(frozen=True)
class Shape:
    """Of a Mistral. widths: (in, out) of the seven linear layers of a layer, by name."""

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    heads: int
    vocabulary: int
    tied: bool

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        h, i = self.hidden, self.intermediate
        return {
            "q_proj": (h, self.queries),
            "k_proj": (h, self.keys),
            "v_proj": (h, self.keys),
            "o_proj": (self.queries, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }


def shape_of(config: dict) -> Shape:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        queries=heads * size,
        keys=config.get("num_key_value_heads", heads) * size,
        heads=heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
    )


def targets(shape: Shape, params: Params) -> list[str]:
    """The layers with an adapter, by the last part of the names in lora.target_modules."""
    chosen = params.lora.target_modules
    if chosen == "all-linear":
        return list(shape.widths)
    return [name for name in shape.widths if name in {target.rpartition(".")[2] for target in chosen}]


def is_dora(params: Params) -> bool:
    return params.lora.variant == "dora"


def is_fused(params: Params) -> bool:
    """Whether the layers run as in stages/core/fused/layer.py; else PEFT's and transformers' modules compute."""
    return params.quantization.bits == 4 and not is_dora(params) and params.machine.sharding == "none"


def states_bytes(params: Params) -> int:
    """Of a hidden state: PEFT's outputs of DoRA are in fp32."""
    return 4 if is_dora(params) and params.quantization.bits != 16 else 2


def layer_activations(shape: Shape, params: Params, varlen: bool) -> int:
    """Bytes a token that one layer keeps for the backward pass."""
    h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    adapted = targets(shape, params)
    attention = 2 * (q + 2 * k + q) + 4 * shape.heads  # q, k, v, the output, a sum of exponentials a head
    if not varlen:
        attention += 2 * 2 * (q - k)  # keys and values repeated for each head
    adapters = 2 * params.lora.r * len(adapted)
    masks = sum(shape.widths[name][0] for name in adapted) if params.lora.dropout else 0
    if is_fused(params):
        return attention + 2 * (2 * h + 2 * i) + adapters + masks  # the states before attention and MLP, gate, up
    norms = 2 * 4 * h  # the input in fp32
    swiglu = 3 * states_bytes(params) * i  # gate, silu(gate), up
    return norms + attention + swiglu + adapters + masks + adapters_inputs(shape, params) + magnitudes(shape, params)


def adapters_inputs(shape: Shape, params: Params) -> int:
    """Bytes a token of what PEFT's adapters are given in a layer, the attention's output apart, which is kept anyway.
    Where dropout or a cast lies between, each has its own; else those of one norm share its output."""
    bits, adapted = params.quantization.bits, targets(shape, params)
    own = bool(params.lora.dropout) or bits == 16 or is_dora(params)
    total = 2 * sum(shape.widths[name][0] for name in adapted) if own else 0
    # LLM.int8 holds on to what flows into every layer.
    shared = list(shape.widths) if bits == 8 else [] if own else adapted
    givers = {"q_proj": "norm", "k_proj": "norm", "v_proj": "norm", "gate_proj": "mlp", "up_proj": "mlp"}
    widths = {givers.get(name, name): shape.widths[name][0] for name in shared if name != "o_proj"}
    return total + 2 * sum(widths.values())


def magnitudes(shape: Shape, params: Params) -> int:
    """Bytes a token that DoRA keeps to scale a layer's outputs: those of the adapter, and those of the base, which on
    4 bits are as wide as the states that flow in."""
    if not is_dora(params):
        return 0
    base = 2 if params.lora.dropout or params.quantization.bits == 16 else 4
    return (2 + base) * sum(shape.widths[name][1] for name in targets(shape, params))


# How much memory a training takes, counted from the base's config, and what is kept there to be fast.
#
# What a layer keeps for the backward pass is counted in stages/runtime/memory.py.
#


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
    from stages.runtime.launch import devices

    return devices(params) * machine.nodes


def estimate(shape: Shape, params: Params, keep: Keep, length: int, varlen: bool) -> Estimate:
    """For a full batch: train.batch_size rows of `length` tokens, all of them trained."""
    from stages._train.objective import CHUNK  # here, since it imports torch

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
