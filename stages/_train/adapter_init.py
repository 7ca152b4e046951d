"""What the adapter starts from: nothing (PEFT's B = 0), an earlier adapter, or values from the base's own weights.

LoftQ (Li et al. 2023, arXiv 2310.08659): one round of it, the best approximation of rank r to what quantization lost.
PEFT 0.21's replace_lora_weights_loftq does that on CUDA only, and for lora.alpha = r only: it leaves the scaling out.

PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775), both as PEFT has them. They
move the main directions of the base's weights into the adapter. save_adapter() undoes that.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.preflight import adapted_layers
from stages.core.params import Lora
from stages.core.paths import ADAPTERS, BASE, read_json
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

SUBTRACTED = "subtracted.safetensors"  # in a checkpoint: what was subtracted from the base
PISSA = "pissa_niter_16"  # PEFT's fast singular value decomposition, in 16 rounds; the exact one takes minutes a layer


def check_initial_adapter(lora: Lora) -> None:
    """Checks that lora.init_from names an adapter of the shape that params.yaml asks for.

    Raises:
        UserError: it does not.
    """
    if lora.init_from is None:
        return
    from safetensors import SafetensorError, safe_open

    folder = ADAPTERS / lora.init_from
    try:
        config = read_json(folder / "adapter_config.json")
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"lora.init_from: {folder} is no adapter ({error}). Copy a folder with adapter_config.json and "
            f"adapter_model.safetensors to {folder}, or set it to null"
        ) from None
    actual = variant_of(config)
    wanted = {"lora.variant": lora.variant, "lora.r": lora.r, "lora.alpha": lora.alpha}
    for key, value in wanted.items():
        if actual[key] != value:
            raise UserError(f"lora.init_from: the adapter {folder} has {key} {actual[key]}, but {key} is {value}")
    expected = expected_shapes(lora)
    if odd := sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)):
        raise UserError(
            f"lora.init_from: the adapter {folder} does not fit lora.target_modules and the base; {len(odd)} tensors "
            f"differ, such as {odd[0]}: {shapes.get(odd[0])} instead of {expected.get(odd[0])}"
        )


def variant_of(config: dict) -> dict[str, object]:
    """The values of params.yaml that an adapter_config.json follows from."""
    variant = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    return {"lora.variant": variant, "lora.r": config.get("r"), "lora.alpha": config.get("lora_alpha")}


def expected_shapes(lora: Lora) -> dict[str, tuple[int, ...]]:
    """{tensor of an adapter's file: its shape}."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (width, height) in adapted_layers(lora).items():
        prefix = f"base_model.model.model.{name}"
        shapes |= {f"{prefix}.lora_A.weight": (lora.r, width), f"{prefix}.lora_B.weight": (height, lora.r)}
        if lora.variant == "dora":
            shapes[f"{prefix}.lora_magnitude_vector"] = (height,)
    return shapes


def initialize_adapter(model: "PeftModel", lora: Lora, checkpoint: Path | None) -> "dict[str, torch.Tensor]":
    """Gives the adapter its first values, in place.

    Args:
        model: the base with a fresh adapter.
        lora: the section of params.yaml.
        checkpoint: the one that the training continues from. It brings the adapter's values later. What was subtracted
            from the base then is subtracted again here.

    Returns:
        What was subtracted from the base: {tensor of an adapter's file: A₀ or B₀}. It is empty except for PiSSA, OLoRA.
    """
    import torch
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
    from safetensors.torch import load_file

    if lora.init in ("pissa", "olora"):
        if checkpoint:
            subtracted = load_file(checkpoint / SUBTRACTED)
            subtract_from_base(model, subtracted)
            return subtracted
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.pissa_init("default", PISSA) if lora.init == "pissa" else layer.olora_init("default")
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in state.items()}
    if checkpoint is None and lora.init == "loftq":
        initialize_loftq(model)
    if checkpoint is None and lora.init_from is not None:
        set_peft_model_state_dict(model, load_peft_weights(str(ADAPTERS / lora.init_from), device="cpu"))
    return {}


def lora_layers(model: "PeftModel") -> "Iterator[tuple[str, LoraLayer]]":
    """Yields (name in the base, layer) of all layers with an adapter."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def subtract_from_base(model: "PeftModel", subtracted: "dict[str, torch.Tensor]") -> None:
    """W − scaling · B₀A₀ for each weight, in PEFT's order of operations, to the same bytes."""
    for name, layer in lora_layers(model):
        weight = layer.get_base_layer().weight
        a, b = (subtracted[f"base_model.model.{name}.lora_{part}.weight"].to(weight.device) for part in "AB")
        weight.data = (weight.data.float() - layer.scaling["default"] * b @ a).to(weight.dtype)


def dequantized_weight(weight: "torch.nn.Parameter") -> "torch.Tensor":
    """The values of a 4-bit weight (out, in). A weight that machine.memory keeps in 16 bits has them already."""
    from bitsandbytes.functional import dequantize_4bit

    state = getattr(weight, "quant_state", None)
    return weight.data if state is None else dequantize_4bit(weight.data, state)


def initialize_loftq(model: "PeftModel") -> None:
    """Gives the adapter the best approximation to what quantization lost (see the top of this file).

    Raises:
        UserError: models/base lacks the 16-bit weights of a layer.
    """
    import torch
    from safetensors import safe_open

    layers = dict(lora_layers(model))
    for shard in sorted(BASE.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not (layer := layers.pop(key.removesuffix(".weight"), None)):
                    continue
                weight, rank = layer.get_base_layer().weight, layer.r["default"]
                original = file.get_tensor(key).to(weight.device).float()
                lost = original - dequantized_weight(weight).float()
                left, values, right = torch.linalg.svd(lost, full_matrices=False)
                root = values[:rank].sqrt()
                # Copied into the memory that is there: with another layout, products would round differently after a
                # resume.
                layer.lora_A["default"].weight.data.copy_(root[:, None] * right[:rank])
                layer.lora_B["default"].weight.data.copy_(left[:, :rank] * root / layer.scaling["default"])
    if layers:
        raise UserError(f"lora.init: loftq found no 16-bit weights of {sorted(layers)[0]} in {BASE}")
