"""A decoder layer of Mistral with LoRA on its linear layers, forward and backward as one operation of autograd.

Composed of modules, a layer keeps some 185 KB a token of a 7B for its backward pass and is a few hundred operations,
which on a fast GPU wait for Python. Here what the backward pass needs is chosen: the matrix products' outputs (94 KB),
while norms and SwiGLU are computed again, or the layer's input alone (8 KB), and then all but the last product again.
Attention stays whatever function transformers was given.
"""

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, eager_attention_forward

from stages.core.fused.forward import Activations, Call, draws_of
from stages.core.fused.kernels import add_norm, norm, norm_backward, rotate, swiglu, swiglu_backward
from stages.core.fused.lora import Linear, is_plain

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Layer:
    """hold: its weights are kept in 16 bits. keep: what the backward pass needs of it is kept, not computed again.
    offload: its input, which that needs then, waits in the host's memory."""

    def __init__(self, layer: MistralDecoderLayer, hold: bool, keep: bool, offload: bool):
        self.attention, self.keep, self.offload = layer.self_attn, keep, offload
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        device = layer.input_layernorm.weight.device
        self.eps = torch.tensor(layer.input_layernorm.variance_epsilon, dtype=torch.float32, device=device)
        self.linear = {name: Linear(getattr(layer.self_attn, name), hold) for name in ATTENTION}
        self.linear |= {name: Linear(getattr(layer.mlp, name), hold) for name in MLP}

    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for linear in self.linear.values() for parameter in linear.parameters()]

    def __call__(self, hidden_states, attention_mask=None, position_embeddings=None, **options) -> torch.Tensor:
        """As MistralDecoderLayer.forward, without a cache."""
        for name in ("past_key_values", "use_cache"):
            options.pop(name, None)
        call = Call(*position_embeddings, attention_mask, options)
        offload = self.offload and torch.is_grad_enabled()
        return Whole.apply(hidden_states, self, call, offload, *self.parameters())

    def apply(self, name: str, x: torch.Tensor, activations: Activations) -> torch.Tensor:
        linear = self.linear[name]
        activations.used[name] = linear.adapter(x)
        return linear.product(x, activations.used[name])

    def attend(self, x: torch.Tensor, call: Call, activations: Activations) -> torch.Tensor:
        """x: the normalized hidden states (tokens, width) → (tokens, heads · size)"""
        attention = self.attention
        heads = (-1, attention.head_dim)
        q, k, v = (self.apply(name, x, activations).unflatten(-1, heads) for name in ATTENTION[:3])
        q, k = rotate(q, k, *call.angles())
        shape = call.cos.shape[:2]
        q, k, v = (states.unflatten(0, shape).detach().requires_grad_() for states in (q, k, v))
        function = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        with torch.enable_grad():
            out, _ = function(
                attention,
                *(states.transpose(1, 2) for states in (q, k, v)),
                call.mask,
                dropout=attention.attention_dropout if attention.training else 0.0,
                scaling=attention.scaling,
                sliding_window=getattr(attention.config, "sliding_window", None),
                **call.options,
            )
        activations.attention = (q, k, v, out)
        return out.detach().reshape(len(x), -1)

    def run(self, x: torch.Tensor, call: Call) -> tuple[Activations, torch.Tensor]:
        """All but the last product: what the backward pass needs, and that product's input."""
        activations = Activations()
        attended = self.attend(norm(x, self.norms[0].weight, self.eps), call, activations)
        attended = self.apply("o_proj", attended, activations)
        activations.middle, normalized = add_norm(x, attended, self.norms[1].weight, self.eps)
        activations.gate = self.apply("gate_proj", normalized, activations)
        activations.up = self.apply("up_proj", normalized, activations)
        product = swiglu(activations.gate, activations.up)
        activations.used["down_proj"] = self.linear["down_proj"].adapter(product)
        return activations, product

    def mlp_backward(self, gradient: torch.Tensor, found: Activations, gradients: dict[str, list]) -> torch.Tensor:
        """The gradient of the hidden states between attention and MLP."""
        down, used = self.linear["down_proj"], found.used
        of_product = down.of_input(gradient, used["down_proj"])
        product, *of_both = swiglu_backward(of_product, found.gate, found.up)
        del of_product
        found.gate = found.up = None
        gradients["down_proj"] = down.of_adapter(gradient, product, used["down_proj"])
        del product
        weight, total = self.norms[1].weight, None
        normalized = norm(found.middle, weight, self.eps)
        for name, of_one in zip(MLP[:2], of_both, strict=True):
            total = self.linear[name].of_input(of_one, used[name], total)
            gradients[name] = self.linear[name].of_adapter(of_one, normalized, used[name])
        return norm_backward(total, found.middle, gradient, weight, self.eps)

    def attention_backward(  # noqa: PLR0913, PLR0917
        self, gradient: torch.Tensor, x: torch.Tensor, call: Call, found: Activations, gradients: dict, wanted: bool
    ) -> torch.Tensor | None:
        """The gradient of the layer's input x, where it is wanted."""
        used, out_linear = found.used, self.linear["o_proj"]
        *inputs, out = found.attention
        found.attention = ()
        of_out = out_linear.of_input(gradient, used["o_proj"]).view_as(out)
        gradients["o_proj"] = out_linear.of_adapter(gradient, out.detach().reshape(len(x), -1), used["o_proj"])
        of_q, of_k, of_v = (states.flatten(0, 1).contiguous() for states in torch.autograd.grad(out, inputs, of_out))
        del out, inputs
        cos, sin = call.angles()
        of_q, of_k = rotate(of_q, of_k, cos, -sin)
        weight, total = self.norms[0].weight, None
        normalized = norm(x, weight, self.eps)
        for name, of_one in zip(ATTENTION[:3], (of_q, of_k, of_v), strict=True):
            flat = of_one.flatten(1)
            if wanted:
                total = self.linear[name].of_input(flat, used[name], total)
            gradients[name] = self.linear[name].of_adapter(flat, normalized, used[name])
        return norm_backward(total, x, gradient, weight, self.eps) if wanted else None


class Whole(torch.autograd.Function):
    """The layer as an operation: hidden states (rows, length, width) → the same shape."""

    @staticmethod
    def forward(
        ctx, hidden_states: torch.Tensor, layer: Layer, call: Call, offload: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        x = hidden_states.flatten(0, 1)
        ctx.layer, ctx.call = layer, call
        if not layer.keep:
            ctx.state = (torch.cuda if x.is_cuda else torch.random).get_rng_state()
        activations, product = layer.run(x, call)
        out = layer.linear["down_proj"].product(product, activations.used["down_proj"]).add_(activations.middle)
        if offload:  # the GPU copies when it comes to it, and nothing waits
            ctx.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)
        else:
            ctx.save_for_backward(x)
        ctx.activations = activations if layer.keep else None
        return out.view_as(hidden_states)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        layer, call, found = ctx.layer, ctx.call, ctx.activations
        x = ctx.host.to(gradient.device, non_blocking=True) if layer.offload else ctx.saved_tensors[0]
        # Taken from the graph, which may live on for a while, so that each layer's go as soon as they were used.
        ctx.activations = None
        shape, gradient = gradient.shape, gradient.flatten(0, 1).contiguous()
        if found is None:
            with draws_of(ctx.state, x.device):
                found, _ = layer.run(x, call)
        gradients: dict[str, list[torch.Tensor]] = {}
        gradient = layer.mlp_backward(gradient, found, gradients)
        of_x = layer.attention_backward(gradient, x, call, found, gradients, ctx.needs_input_grad[0])
        in_order = [each for name in layer.linear for each in gradients[name]]
        return None if of_x is None else of_x.view(shape), None, None, None, *in_order


def fuse(model: torch.nn.Module, activations: int = 0, weights: int = 0, offload: bool = False) -> bool:
    """Gives the decoder layers of a PEFT model on a 4-bit base the passes above, and says whether it could: all linear
    layers must be plain, or the model stays as it is.

    To be called when the adapters have the dtype and device they are trained in. activations, weights, offload: see
    Keep in stages/runtime/memory.py. It is the last layers that keep something: their activations are gone when those
    before them compute theirs again.
    """
    layers = model.get_base_model().model.layers
    parts = [(layer.self_attn, ATTENTION) for layer in layers] + [(layer.mlp, MLP) for layer in layers]
    if not all(is_plain(getattr(part, name)) for part, names in parts for name in names):
        return False
    for index, layer in enumerate(layers):
        left = len(layers) - index
        keep = left <= activations
        layer.forward = Layer(layer, hold=left <= weights, keep=keep, offload=offload and not keep)
    return True
