"""What a decoder layer keeps for its backward pass, counted from the base's config.

The counts list tensors. The lists were made from transformers' Mistral with the passes of stages/core/fused/lora.py, or
with PEFT's modules. A test compares them with what PyTorch keeps.
"""

from dataclasses import dataclass

from stages.core.machine import ResolvedMachine
from stages.core.params import Lora, Quantization


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mistral.

    Args:
        layers: decoder layers.
        hidden: width of the hidden states.
        intermediate: width of the MLP.
        queries: width of all queries of a token.
        keys: width of all keys of a token, and of all values.
        heads: heads of queries.
        vocabulary: tokens.
        tied: whether the head shares its weight with the embeddings.
    """

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
        """{linear layer of a decoder layer: (in, out)}."""
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

    @property
    def parameters(self) -> int:
        """All weights, with embeddings, head and norms."""
        layer = sum(a * b for a, b in self.widths.values())
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + ends + (2 * self.layers + 1) * self.hidden


def shape_of(config: dict) -> Shape:
    """The shape that a config.json describes."""
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


def adapted_projections(shape: Shape, lora: Lora) -> list[str]:
    """The linear layers with an adapter, by the last part of the names in lora.target_modules."""
    if lora.target_modules == "all-linear":
        return list(shape.widths)
    return [name for name in shape.widths if name in {target.rpartition(".")[2] for target in lora.target_modules}]


def is_dora(lora: Lora) -> bool:
    return lora.variant == "dora"


def is_fused(quantization: Quantization, lora: Lora, machine: ResolvedMachine) -> bool:
    """Whether stages/core/fused/layer.py will run the layers. Otherwise PEFT's and transformers' modules do."""
    return quantization.bits == 4 and not is_dora(lora) and machine.sharding == "none"


def state_bytes(quantization: Quantization, lora: Lora) -> int:
    """Bytes a value of a hidden state: PEFT's outputs of DoRA are in fp32."""
    return 4 if is_dora(lora) and quantization.bits != 16 else 2


def layer_activations(shape: Shape, quantization: Quantization, lora: Lora, machine: ResolvedMachine) -> int:
    """Bytes a token that one layer keeps for the backward pass."""
    h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    adapted = adapted_projections(shape, lora)
    attention = 2 * (q + 2 * k + q) + 4 * shape.heads  # q, k, v, the output, a sum of exponentials a head
    if machine.packed_attention != "varlen":
        attention += 2 * 2 * (q - k)  # keys and values repeated for each head
    adapters = 2 * lora.r * len(adapted)
    masks = sum(shape.widths[name][0] for name in adapted) if lora.dropout else 0
    if is_fused(quantization, lora, machine):
        return attention + 2 * (2 * h + 2 * i) + adapters + masks  # the states before attention and MLP, gate, up
    norms = 2 * 4 * h  # the input in fp32
    swiglu = 3 * state_bytes(quantization, lora) * i  # gate, silu(gate), up
    inputs = adapter_inputs(shape, quantization, lora) + dora_outputs(shape, quantization, lora)
    return norms + attention + swiglu + adapters + masks + inputs


def adapter_inputs(shape: Shape, quantization: Quantization, lora: Lora) -> int:
    """Bytes a token of the inputs of PEFT's adapters in a layer, without the attention's output, which is kept anyway.

    With dropout or a cast before it, each adapter has its own input. Otherwise those of one norm share its output.
    """
    bits, adapted = quantization.bits, adapted_projections(shape, lora)
    own = bool(lora.dropout) or bits == 16 or is_dora(lora)
    total = 2 * sum(shape.widths[name][0] for name in adapted) if own else 0
    # LLM.int8 keeps the inputs of all layers.
    shared = list(shape.widths) if bits == 8 else [] if own else adapted
    givers = {"q_proj": "norm", "k_proj": "norm", "v_proj": "norm", "gate_proj": "mlp", "up_proj": "mlp"}
    widths = {givers.get(name, name): shape.widths[name][0] for name in shared if name != "o_proj"}
    return total + 2 * sum(widths.values())


def dora_outputs(shape: Shape, quantization: Quantization, lora: Lora) -> int:
    """Bytes a token that DoRA keeps to scale a layer's outputs: those of the adapter and those of the base.

    On 4 bits, the base's are as wide as the states that it is given.
    """
    if not is_dora(lora):
        return 0
    base = 2 if lora.dropout or quantization.bits == 16 else 4
    return (2 + base) * sum(shape.widths[name][1] for name in adapted_projections(shape, lora))
