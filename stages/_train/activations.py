"""What a layer keeps for the backward pass, counted from the base's config.

The counts are of tensors: they were listed from transformers' Mistral with the passes of stages/shared/fused/lora.py,
or with PEFT's modules, and a test compares the lists with what PyTorch really keeps.
"""

from dataclasses import dataclass

from stages.shared.params import Params


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
    """Whether the layers run as in stages/shared/fused/layer.py; else PEFT's and transformers' modules compute."""
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
