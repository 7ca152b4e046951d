"""Merge: models/base, models/adapter, data/tokenized/validation.arrow, params `quantization`, `prompt`, `merge`
→ models/merged, metrics/merge.json.

The adapter was trained on the 4-bit values of the base, so it is merged onto just those (`merge.base: dequantized`),
and the result is compared with the model as it was trained before it may take its place. Run it with `dvc repro merge`.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stages.shared.errors import UserError
from stages.shared.models import load_model, packed_batch, quantized_modules
from stages.shared.params import Params
from stages.shared.paths import (
    ADAPTER,
    BASE,
    MERGED,
    METRICS,
    TOKENIZED,
    read_json,
    whole_directory,
    write_json,
    write_text,
)
from stages.shared.progress import progress
from stages.shared.prompts import CHAT_TEMPLATES, IGNORED
from stages.shared.stage import Outcome, run_stage

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def dequantized(module: "torch.nn.Module") -> "torch.Tensor":
    """The values a 4-bit layer computes with. Shape (out_features, in_features)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


def adapter_deltas(model: "PeftModel") -> "dict[str, torch.Tensor]":
    """{module name in the base: what the adapter adds to its weight, in fp32}.

    Raises:
        UserError: the adapter file has weights that belong to no module, which a merge would leave out.
    """
    from peft.tuners.lora import LoraLayer
    from safetensors import safe_open

    deltas = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            deltas[name] = module.get_delta_weight("default").detach().float().cpu()
    with safe_open(ADAPTER / "adapter_model.safetensors", framework="pt") as file:
        owners = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118
    if owners != deltas.keys():
        odd = sorted(owners ^ deltas.keys())
        raise UserError(f"{len(odd)} adapter modules do not match the base model, such as {odd[0]}. Train again")
    return deltas


def merge(model: "PeftModel", base: str, folder: Path) -> int:
    """Writes the merged weights to `folder`, file for file as in models/base, and returns how many tensors changed.

    model: the base as it was trained (in 4 bits), with the adapter. base: merge.base.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    deltas = adapter_deltas(model)
    # PEFT keeps the layer it adapts under `base_layer`.
    four_bit = {name.removesuffix(".base_layer"): module for name, module in quantized_modules(model.get_base_model())}
    changed = 0
    for shard in sorted(BASE.glob("*.safetensors")):
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            for key in sorted(file.keys()):
                original = file.get_tensor(key)
                name = key.removesuffix(".weight")
                use_four_bit = base == "dequantized" and name in four_bit
                weight = dequantized(four_bit[name]).cpu() if use_four_bit else original
                if name in deltas:
                    weight = weight.float() + deltas.pop(name)
                    changed += 1
                tensors[key] = weight.to(original.dtype).contiguous()
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
        (folder / shard.name).chmod(0o644)  # the library writes for the owner alone, and servers run as others
    if deltas:
        raise UserError(f"models/base has no weight for the adapter's {sorted(deltas)[0]}. Train again")
    return changed


def compare(trained: "PeftModel", merged: "torch.nn.Module", rows: list[dict]) -> dict[str, float]:
    """How far the merged model is from the trained one, on the trained tokens of `rows`: nats, KL divergence, top 1."""
    import torch

    sums = dict.fromkeys(("loss_trained", "loss_merged", "kl", "top1_agreement"), 0.0)
    tokens = 0
    with progress("parity", len(rows), " rows") as shown, torch.no_grad():
        for row in rows:
            batch = packed_batch([row], trained.device)
            targets = batch.pop("labels")[0, 1:]
            kept = targets != IGNORED
            with torch.autocast(trained.device.type, dtype=torch.bfloat16):  # as in training
                reference = trained(**batch, use_cache=False).logits[0, :-1][kept].float().log_softmax(-1)
            found = merged(**batch, use_cache=False).logits[0, :-1][kept].float().log_softmax(-1)
            index = targets[kept, None]
            sums["loss_trained"] -= reference.gather(1, index).sum().item()
            sums["loss_merged"] -= found.gather(1, index).sum().item()
            sums["kl"] += (reference.exp() * (reference - found)).sum().item()
            sums["top1_agreement"] += (reference.argmax(-1) == found.argmax(-1)).sum().item()
            tokens += len(index)
            shown.advance()
    means = {name: value / tokens for name, value in sums.items()}
    return means | {"loss_gap": means["loss_merged"] - means["loss_trained"], "tokens": tokens}


def copy_companions(folder: Path, template: str) -> None:
    """Everything of models/base but its weights, and the chat template that training followed."""
    for path in sorted(BASE.iterdir()):
        if path.name != "manifest.json" and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATES[template])


def main(params: Params) -> Outcome:
    from datasets import Dataset
    from peft import PeftModel

    rows = list(Dataset.from_file(str(TOKENIZED / "validation.arrow")).take(params.merge.parity_rows))
    model = load_model(BASE, params.machine, params.quantization)
    trained = PeftModel.from_pretrained(model, ADAPTER, autocast_adapter_dtype=True).eval()
    with whole_directory(MERGED) as folder:
        changed = merge(trained, params.merge.base, folder)
        copy_companions(folder, params.prompt.template)
        parity = compare(trained, load_model(folder, params.machine), rows)
        gap = parity["loss_gap"]
        if abs(gap) > params.merge.max_loss_gap:
            raise UserError(
                f"the merged model's loss is {gap:+.5f} nats a token from the trained one's, more than "
                f"merge.max_loss_gap ({params.merge.max_loss_gap}). With merge.base: dequantized it should be near 0"
            )
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    metrics = {"base": params.merge.base, "bytes": size, "merged_modules": changed, "parity": parity}
    write_json(METRICS / "merge.json", metrics | {"tensors": read_json(BASE / "manifest.json")["tensors"]})
    return Outcome(
        f"{changed} modules merged onto the {params.merge.base} base; on {parity['tokens']} tokens the loss differs by "
        f"{gap:+.5f}, KL {parity['kl']:.5f}, top-1 agreement {parity['top1_agreement']:.2%}"
    )


if __name__ == "__main__":
    run_stage("merge", main)
