"""How much memory a training takes, counted from the base's config, and what is kept there to be fast.

The counts are of tensors: what a layer keeps for the backward pass was listed from transformers' Mistral with the
passes of stages/_train/lora.py, and a test compares the list with what PyTorch really keeps.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from stages._train.loss import CHUNK
from stages.shared.params import Params

GIB = 1 << 30
OVERHEAD = GIB  # of the CUDA context, its libraries' workspaces
SLACK = 1.1  # blocks of the allocator that are too small for what is asked of it


@dataclass(frozen=True)
class Keep:
    """What stays in memory instead of being computed again in each step."""

    weights: bool  # the base dequantized, 2 bytes a weight, not 4 bits
    activations: bool  # what the backward pass needs of each layer, not only the layer's input


CHOICES = {  # fastest first: on a GPU, computing activations again costs a third of a step, dequantizing a few percent
    "both": Keep(weights=True, activations=True),
    "activations": Keep(weights=False, activations=True),
    "weights": Keep(weights=True, activations=False),
    "low": Keep(weights=False, activations=False),
}


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


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a step."""

    base: int
    adapter: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.optimizer + self.activations + self.logits

    def fits(self, budget: int) -> bool:
        return self.total * SLACK + OVERHEAD <= budget


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


def layer_activations(shape: Shape, params: Params, varlen: bool) -> int:
    """Bytes a token that one layer keeps for the backward pass."""
    h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    adapted = targets(shape, params)
    norms = 2 * (4 * h + 2 * h)  # the input in fp32, the output that q, k, v or gate, up are given
    attention = 2 * (q + 2 * k + q) + 4 * shape.heads  # q, k, v, the output, a sum of exponentials a head
    if not varlen:
        attention += 2 * 2 * (q - k)  # keys and values repeated for each head
    swiglu = 2 * 4 * i  # gate, silu(gate), up, their product
    adapters = 2 * params.lora.r * len(adapted)
    dropout = sum(shape.widths[name][0] for name in adapted) if params.lora.dropout else 0
    return norms + attention + swiglu + adapters + dropout


def estimate(shape: Shape, params: Params, keep: Keep, length: int, varlen: bool) -> Estimate:
    """For a full batch: train.batch_size rows of `length` tokens, all of them trained."""
    tokens = params.train.batch_size * length
    weights = shape.layers * sum(a * b for a, b in shape.widths.values())
    constants = (1 / 64 + 4 / (64 * 256)) if params.quantization.double_quant else 4 / 64  # bytes a weight
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + (2 * shape.layers + 1) * shape.hidden
    bytes_each = {4: 0.5 + constants, 8: 1, 16: 2}[params.quantization.bits]
    base = weights * 2 if keep.weights else int(weights * bytes_each)
    adapted = [shape.widths[name] for name in targets(shape, params)]
    trained = shape.layers * params.lora.r * sum(a + b for a, b in adapted)
    layer = tokens * layer_activations(shape, params, varlen)
    kept = shape.layers * (layer if keep.activations else 2 * tokens * shape.hidden)
    # While a layer's gradients are computed: its activations where they were not kept, the gradients in its MLP, and a
    # dequantized weight.
    working = (0 if keep.activations else layer) + tokens * 2 * 3 * shape.intermediate
    working += 0 if keep.weights else 2 * max(a * b for a, b in shape.widths.values())
    ends = tokens * shape.hidden * (4 + 2 + 2 + 2)  # the last norm's input, its output, the gradients of both
    chunk = min(CHUNK, tokens) * shape.vocabulary * (2 + 4 + 4 + 2)  # logits, in fp32, a temporary, probabilities
    return Estimate(
        base=base + 2 * embeddings,
        adapter=4 * trained,
        optimizer=4 * trained * 3,  # gradients and AdamW's two moments, all in fp32
        activations=kept + working + ends,
        logits=chunk,
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


def choose(shape: Shape, params: Params, length: int, varlen: bool, budget: int) -> str:
    """machine.memory, or for `auto` the fastest of CHOICES that fits `budget` bytes; `low` where none does."""
    if params.machine.memory != "auto":
        return params.machine.memory
    fitting = (name for name, keep in CHOICES.items() if estimate(shape, params, keep, length, varlen).fits(budget))
    return next(fitting, "low")
