"""The adapter: made, measured against its base, saved. What it starts from is in start.py."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.paths import read_json, write_json
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def save_adapter(model: "PeftModel", folder: Path, taken: "dict[str, torch.Tensor] | None" = None) -> None:
    """Writes adapter_model.safetensors and adapter_config.json.

    taken: what was taken out of the base for the adapter to start with (see start.py). It is taken out of the adapter
    in turn, by as many ranks more, so that the result is a plain LoRA of the untouched base. The computation is that of
    PEFT's LoraModel.subtract_mutated_init, which loads a second adapter for it: W − B₀A₀ + BA = W + [B −B₀] [A; A₀].
    """
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the base
    config = read_json(folder / "adapter_config.json")
    if taken:
        double_rank(folder / "adapter_model.safetensors", taken)
        config["r"] *= 2
        config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2  # the scaling stays
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT keeps a set, whose order differs from run to run
    write_json(folder / "adapter_config.json", config)
    (folder / "README.md").unlink()  # PEFT's card is an empty form


def double_rank(file: Path, taken: "dict[str, torch.Tensor]") -> None:
    import torch
    from safetensors.torch import load_file, save_file

    def wider(name: str, trained: "torch.Tensor") -> "torch.Tensor":
        return torch.cat((trained, taken[name]), 0) if "lora_A" in name else torch.cat((trained, -taken[name]), 1)

    save_file({name: wider(name, trained) for name, trained in load_file(file).items()}, file, {"format": "pt"})


def check_saved(model: "PeftModel", file: Path) -> None:
    """Reads the adapter's file again and compares it with what was trained, which of double_rank's is the first part.

    Raises:
        UserError: a tensor is missing or not the same.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    trained, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(file)
    wrong = sorted(trained.keys() ^ saved.keys())
    for name in saved.keys() & trained.keys():
        first = tuple(slice(size) for size in trained[name].shape)
        bits = (each.contiguous().view(torch.uint8) for each in (trained[name].cpu(), saved[name][first]))
        if not torch.equal(*bits):
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{file} does not hold what was trained ({len(wrong)} tensors, such as {wrong[0]}): the disk or the memory "
            "is failing. The last checkpoint is kept; run it again"
        )
