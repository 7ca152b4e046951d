"""The adapter: made, measured against its base, saved."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.shared.errors import UserError
from stages.shared.models import quantized_modules
from stages.shared.params import Lora
from stages.shared.paths import read_json, write_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def add_adapter(model: "torch.nn.Module", lora: Lora, manifest: dict) -> "PeftModel":
    """The model with fresh LoRA weights, which name the base that they belong to."""
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else sorted(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        revision=manifest["revision"],
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora.target_modules does not fit the base model: {error}") from None
    peft_model.peft_config["default"].base_model_name_or_path = manifest["id"] or manifest["path"]
    return peft_model


def quantized_bytes(model: "torch.nn.Module") -> int:
    """Bytes that the weights take in memory, the quantization constants included."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    for _, module in quantized_modules(model):
        state = module.weight.quant_state
        total += state.absmax.nbytes + state.code.nbytes
        if state.nested:
            total += state.state2.absmax.nbytes + state.state2.code.nbytes
    return total


def save_adapter(model: "PeftModel", folder: Path) -> None:
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the base
    config = read_json(folder / "adapter_config.json")
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT keeps a set, whose order differs from run to run
    write_json(folder / "adapter_config.json", config)
    (folder / "README.md").unlink()  # PEFT's card is an empty form


def check_saved(model: "PeftModel", file: Path) -> None:
    """Reads the adapter's file again and compares it with what was trained.

    Raises:
        UserError: a tensor is missing or not the same.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    trained, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(file)
    wrong = sorted(trained.keys() ^ saved.keys())
    wrong += [name for name in saved if name not in wrong and not torch.equal(trained[name].cpu(), saved[name])]
    if wrong:
        raise UserError(
            f"{file} does not hold what was trained ({len(wrong)} tensors, such as {wrong[0]}): the disk or the memory "
            "is failing. The last checkpoint is kept; run it again"
        )
