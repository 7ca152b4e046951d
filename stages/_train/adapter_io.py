"""The adapter's files: saved, and compared with what was trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.paths import read_json, write_json
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def save_adapter(model: "PeftModel", folder: Path, subtracted: "dict[str, torch.Tensor] | None" = None) -> None:
    """Writes adapter_model.safetensors and adapter_config.json.

    With `subtracted` the file has twice the rank, so that it is a plain LoRA of the untouched base:
    W − B₀A₀ + BA = W + [B −B₀] [A; A₀]. PEFT's LoraModel.subtract_mutated_init computes the same, but loads a second
    adapter for it.

    Args:
        model: the trained model.
        folder: where the files go.
        subtracted: A₀ and B₀, as initialize_adapter() returns them.
    """
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the base
    config = read_json(folder / "adapter_config.json")
    if subtracted:
        double_rank(folder / "adapter_model.safetensors", subtracted)
        config["r"] *= 2
        config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2  # the scaling stays
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT keeps a set, whose order differs from run to run
    write_json(folder / "adapter_config.json", config)
    (folder / "README.md").unlink()  # PEFT's card is an empty form


def double_rank(file: Path, subtracted: "dict[str, torch.Tensor]") -> None:
    """Adds the subtracted matrices to those in the file, with the opposite sign."""
    import torch
    from safetensors.torch import load_file, save_file

    def widen(name: str, trained: "torch.Tensor") -> "torch.Tensor":
        if "lora_A" in name:
            return torch.cat((trained, subtracted[name]), 0)
        return torch.cat((trained, -subtracted[name]), 1)

    save_file({name: widen(name, trained) for name, trained in load_file(file).items()}, file, {"format": "pt"})


def check_saved(model: "PeftModel", file: Path) -> None:
    """Reads the adapter's file again and compares it with what was trained: all of it, or the first half of the ranks.

    Raises:
        UserError: a tensor is missing or differs.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    trained, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(file)
    wrong = sorted(trained.keys() ^ saved.keys())
    for name in saved.keys() & trained.keys():
        first = tuple(slice(size) for size in trained[name].shape)
        tensors = (trained[name].cpu(), saved[name][first])
        if not torch.equal(*(tensor.contiguous().view(torch.uint8) for tensor in tensors)):
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{file} does not hold what was trained ({len(wrong)} tensors, such as {wrong[0]}): the disk or the memory "
            "is failing. The last checkpoint is kept; run it again"
        )
