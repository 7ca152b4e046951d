"""What the adapter starts from: nothing (PEFT's B = 0), an earlier adapter, or what the base's own weights give.

LoftQ (Li et al. 2023, arXiv 2310.08659), one round of it: the best approximation of rank r to what quantization lost.
PEFT 0.21's replace_lora_weights_loftq does the same on CUDA only, and for lora.alpha = r only: it leaves the scaling
out. PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775) take the base's main
directions out of its weights and into the adapter; save_adapter undoes that. Both are PEFT's own.
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

TAKEN = "taken.safetensors"  # of a checkpoint
PISSA = "pissa_niter_16"  # PEFT's fast singular value decomposition, in 16 rounds; the exact one takes minutes a layer


def check_start(lora: Lora) -> None:
    """Raises UserError where lora.init_from is no adapter of the shape that is asked for."""
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
    found = variant_of(config)
    wanted = {"lora.variant": lora.variant, "lora.r": lora.r, "lora.alpha": lora.alpha}
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(f"lora.init_from: the adapter {folder} has {key} {found[key]}, but {key} is {value}")
    expected = expected_shapes(lora)
    if odd := sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)):
        raise UserError(
            f"lora.init_from: the adapter {folder} does not fit lora.target_modules and the base; {len(odd)} tensors "
            f"differ, such as {odd[0]}: {shapes.get(odd[0])} instead of {expected.get(odd[0])}"
        )


def variant_of(config: dict) -> dict[str, object]:
    variant = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    return {"lora.variant": variant, "lora.r": config.get("r"), "lora.alpha": config.get("lora_alpha")}


def expected_shapes(lora: Lora) -> dict[str, tuple[int, ...]]:
    """{tensor of an adapter's file: its shape}."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (width, height) in adapted_layers(lora).items():
        prefix = f"base_model.model.model.{name}"
        found |= {f"{prefix}.lora_A.weight": (lora.r, width), f"{prefix}.lora_B.weight": (height, lora.r)}
        if lora.variant == "dora":
            found[f"{prefix}.lora_magnitude_vector"] = (height,)
    return found


def start(model: "PeftModel", lora: Lora, checkpoint: Path | None) -> "dict[str, torch.Tensor]":
    """Gives the adapter its first values, and returns those that were taken out of the base: {tensor's name: values}.

    From a checkpoint the adapter gets its values later; what was taken out of the base then is taken out of it again.
    """
    import torch
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
    from safetensors.torch import load_file

    if lora.init in ("pissa", "olora"):
        if checkpoint:
            taken = load_file(checkpoint / TAKEN)
            take_out(model, taken)
            return taken
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.pissa_init("default", PISSA) if lora.init == "pissa" else layer.olora_init("default")
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in state.items()}
    if checkpoint is None and lora.init == "loftq":
        make_up_for_quantization(model)
    if checkpoint is None and lora.init_from is not None:
        set_peft_model_state_dict(model, load_peft_weights(str(ADAPTERS / lora.init_from), device="cpu"))
    return {}


def lora_layers(model: "PeftModel") -> "Iterator[tuple[str, LoraLayer]]":
    from peft.tuners.lora import LoraLayer

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def take_out(model: "PeftModel", taken: "dict[str, torch.Tensor]") -> None:
    """W − scaling · B₀A₀, in PEFT's order of operations, to the same bytes."""
    for name, layer in lora_layers(model):
        weight = layer.get_base_layer().weight
        a, b = (taken[f"base_model.model.{name}.lora_{part}.weight"].to(weight.device) for part in "AB")
        weight.data = (weight.data.float() - layer.scaling["default"] * b @ a).to(weight.dtype)


def values_of(weight: "torch.nn.Parameter") -> "torch.Tensor":
    """What 4 bits stand for; a weight that machine.memory keeps in 16 bits is that already."""
    from bitsandbytes.functional import dequantize_4bit

    state = getattr(weight, "quant_state", None)
    return weight.data if state is None else dequantize_4bit(weight.data, state)


def make_up_for_quantization(model: "PeftModel") -> None:
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
                lost = original - values_of(weight).float()
                left, values, right = torch.linalg.svd(lost, full_matrices=False)
                root = values[:rank].sqrt()
                # Into the memory that is there: another layout of it would round products otherwise after a resume.
                layer.lora_A["default"].weight.data.copy_(root[:, None] * right[:rank])
                layer.lora_B["default"].weight.data.copy_(left[:, :rank] * root / layer.scaling["default"])
    if layers:
        raise UserError(f"lora.init: loftq found no 16-bit weights of {sorted(layers)[0]} in {BASE}")
