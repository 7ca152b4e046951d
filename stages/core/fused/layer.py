"""A decoder layer of Mistral with LoRA on its linear layers, forward and backward as one operation of autograd.

A layer made of modules keeps 185 KB a token of a 7B for its backward pass. It is a few hundred operations, which on a
fast GPU wait for Python. Here we choose what the backward pass gets. Either the outputs of the matrix products are kept
(94 KB), and norms and SwiGLU are computed again; or only the layer's input is kept (8 KB), and everything but the last
product is computed again. Attention is whatever function transformers was given.
"""

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, eager_attention_forward

from stages.core.fused.forward import Activations, LayerCall, replayed_draws
from stages.core.fused.kernels import add_norm, norm, norm_backward, rotate, swiglu, swiglu_backward
from stages.core.fused.lora import LoraLinear, is_plain

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

Gradients = dict[str, list[torch.Tensor]]  # by linear layer, those of its adapter


class FusedLayer:
    """The forward and backward pass of one decoder layer, on its modules' weights.

    Args:
        layer: the modules, with adapters that are plain (see is_plain()).
        hold: keep its weights in 16 bits.
        keep: keep its activations for the backward pass, which otherwise computes them again.
        offload: keep its input in the host's memory. Only a layer that keeps no activations may do so.
    """

    def __init__(self, layer: MistralDecoderLayer, hold: bool, keep: bool, offload: bool):
        self.attention, self.keep, self.offload = layer.self_attn, keep, offload
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        device = layer.input_layernorm.weight.device
        self.eps = torch.tensor(layer.input_layernorm.variance_epsilon, dtype=torch.float32, device=device)
        self.linear = {name: LoraLinear(getattr(layer.self_attn, name), hold) for name in ATTENTION}
        self.linear |= {name: LoraLinear(getattr(layer.mlp, name), hold) for name in MLP}

    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for linear in self.linear.values() for parameter in linear.parameters()]

    def __call__(self, hidden_states, attention_mask=None, position_embeddings=None, **options) -> torch.Tensor:
        """As MistralDecoderLayer.forward, without a cache."""
        for name in ("past_key_values", "use_cache"):
            options.pop(name, None)
        call = LayerCall(*position_embeddings, attention_mask, options)
        offload = self.offload and torch.is_grad_enabled()
        return FusedLayerFunction.apply(hidden_states, self, call, offload, *self.parameters())

    def apply(self, name: str, x: torch.Tensor, activations: Activations) -> torch.Tensor:
        """One of the linear layers, on x (tokens, in). Its adapter's activations are added to `activations`."""
        linear = self.linear[name]
        activations.lora[name] = linear.adapter(x)
        return linear.product(x, activations.lora[name])

    def attend(self, x: torch.Tensor, call: LayerCall, activations: Activations) -> torch.Tensor:
        """From the normalized hidden states x (tokens, width) to the attention's output (tokens, heads · size)."""
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

    def run(self, x: torch.Tensor, call: LayerCall) -> tuple[Activations, torch.Tensor]:
        """Everything but the last product, on x (tokens, width): the activations, and that product's input."""
        activations = Activations()
        attended = self.attend(norm(x, self.norms[0].weight, self.eps), call, activations)
        attended = self.apply("o_proj", attended, activations)
        activations.middle, normalized = add_norm(x, attended, self.norms[1].weight, self.eps)
        activations.gate = self.apply("gate_proj", normalized, activations)
        activations.up = self.apply("up_proj", normalized, activations)
        product = swiglu(activations.gate, activations.up)
        activations.lora["down_proj"] = self.linear["down_proj"].adapter(product)
        return activations, product

    def mlp_backward(self, gradient: torch.Tensor, activations: Activations, gradients: Gradients) -> torch.Tensor:
        """The gradient of the hidden states between attention and MLP, from that of the layer's output.

        The adapters' gradients are added to `gradients`. Activations are dropped as soon as they were used.
        """
        down, lora = self.linear["down_proj"], activations.lora
        product_gradient = down.input_gradient(gradient, lora["down_proj"])
        product, *gate_and_up = swiglu_backward(product_gradient, activations.gate, activations.up)
        del product_gradient
        activations.gate = activations.up = None
        gradients["down_proj"] = down.adapter_gradients(gradient, product, lora["down_proj"])
        del product
        weight, total = self.norms[1].weight, None
        normalized = norm(activations.middle, weight, self.eps)
        for name, output_gradient in zip(MLP[:2], gate_and_up, strict=True):
            total = self.linear[name].input_gradient(output_gradient, lora[name], total)
            gradients[name] = self.linear[name].adapter_gradients(output_gradient, normalized, lora[name])
        return norm_backward(total, activations.middle, gradient, weight, self.eps)

    def attention_backward(  # noqa: PLR0913, PLR0917
        self,
        gradient: torch.Tensor,
        x: torch.Tensor,
        call: LayerCall,
        activations: Activations,
        gradients: Gradients,
        wanted: bool,
    ) -> torch.Tensor | None:
        """The gradient of the layer's input x, or None unless it is wanted.

        gradient: that of the hidden states between attention and MLP. The adapters' gradients are added to `gradients`.
        """
        lora, out_linear = activations.lora, self.linear["o_proj"]
        *inputs, out = activations.attention
        activations.attention = ()
        out_gradient = out_linear.input_gradient(gradient, lora["o_proj"]).view_as(out)
        gradients["o_proj"] = out_linear.adapter_gradients(gradient, out.detach().reshape(len(x), -1), lora["o_proj"])
        q, k, v = (states.flatten(0, 1).contiguous() for states in torch.autograd.grad(out, inputs, out_gradient))
        del out, inputs
        cos, sin = call.angles()
        q, k = rotate(q, k, cos, -sin)
        weight, total = self.norms[0].weight, None
        normalized = norm(x, weight, self.eps)
        for name, output_gradient in zip(ATTENTION[:3], (q, k, v), strict=True):
            flat = output_gradient.flatten(1)
            if wanted:
                total = self.linear[name].input_gradient(flat, lora[name], total)
            gradients[name] = self.linear[name].adapter_gradients(flat, normalized, lora[name])
        return norm_backward(total, x, gradient, weight, self.eps) if wanted else None


class FusedLayerFunction(torch.autograd.Function):
    """The layer as an operation, from hidden states (rows, length, width) to the same shape."""

    @staticmethod
    def forward(
        ctx, hidden_states: torch.Tensor, layer: FusedLayer, call: LayerCall, offload: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        x = hidden_states.flatten(0, 1)
        ctx.layer, ctx.call = layer, call
        if not layer.keep:
            ctx.state = (torch.cuda if x.is_cuda else torch.random).get_rng_state()
        activations, product = layer.run(x, call)
        out = layer.linear["down_proj"].product(product, activations.lora["down_proj"]).add_(activations.middle)
        if offload:  # the GPU copies when it reaches this, and nothing waits
            ctx.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)
        else:
            ctx.save_for_backward(x)
        ctx.activations = activations if layer.keep else None
        return out.view_as(hidden_states)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        layer, call, activations = ctx.layer, ctx.call, ctx.activations
        x = ctx.host.to(gradient.device, non_blocking=True) if layer.offload else ctx.saved_tensors[0]
        # Taken from the graph, which may live on for a while. So each layer's go as soon as they were used.
        ctx.activations = None
        shape, gradient = gradient.shape, gradient.flatten(0, 1).contiguous()
        if activations is None:
            with replayed_draws(ctx.state, x.device):
                activations, _ = layer.run(x, call)
        gradients: Gradients = {}
        gradient = layer.mlp_backward(gradient, activations, gradients)
        x_gradient = layer.attention_backward(gradient, x, call, activations, gradients, ctx.needs_input_grad[0])
        parameter_gradients = [tensor for name in layer.linear for tensor in gradients[name]]
        return None if x_gradient is None else x_gradient.view(shape), None, None, None, *parameter_gradients


def fuse(model: torch.nn.Module, activations: int = 0, weights: int = 0, offload: bool = False) -> bool:
    """Gives the decoder layers of a PEFT model the passes above, in place. Returns whether it could.

    It cannot unless all linear layers are plain (see is_plain()): then the model stays as it is. Call it when the
    adapters have the dtype and device that they are trained in.

    Args:
        model: a PeftModel on a 4-bit Mistral.
        activations: how many layers keep their activations. They are the last ones: those are gone when the layers
            before compute theirs again.
        weights: how many layers keep their weights in 16 bits.
        offload: whether the inputs of layers that keep no activations wait in the host's memory.
    """
    layers = model.get_base_model().model.layers
    parts = [(layer.self_attn, ATTENTION) for layer in layers] + [(layer.mlp, MLP) for layer in layers]
    if not all(is_plain(getattr(part, name)) for part, names in parts for name in names):
        return False
    for index, layer in enumerate(layers):
        left = len(layers) - index
        keep = left <= activations
        layer.forward = FusedLayer(layer, hold=left <= weights, keep=keep, offload=offload and not keep)
    return True
