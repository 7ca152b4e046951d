"""A real adapter on a small base, and the merged model."""

import peft
import torch
from safetensors.torch import save_file

from stages import merge as merge_stage
from stages._merge.adapter import Adapter
from stages._merge.stream import MergePlan, write_merged
from stages._train.adapter_io import save_adapter
from stages.core.machine import resolve_machine
from stages.core.models import load_model, make_deterministic
from stages.core.paths import ADAPTER, BASE, write_json
from stages.core.quantization import VALUE_HASHES, VALUE_SAMPLES, BaseValues, base_values


def make_adapter(base, params, folder, std=0.05, **options):
    """A PEFT adapter on the base in 4 bits, with random weights that change the base much."""
    make_deterministic(1, wanted=True, warn_only=False)
    model = load_model(base, resolve_machine(params.machine), params.quantization)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(model, peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
        elif "magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.8, 1.25)
    save_adapter(model, folder)
    values = base_values(model.get_base_model())
    write_json(folder / VALUE_HASHES, values.hashes)
    save_file(values.samples, folder / VALUE_SAMPLES)


def plan_of(params, base="dequantized"):
    """The stage's plan for models/adapter. base: "dequantized", or "original" for the 16-bit weights."""
    values = merge_stage.trained_values(needed=True) if base == "dequantized" else BaseValues({}, {})
    return MergePlan(BASE, Adapter(ADAPTER), params.quantization, values, "cpu")


def merged_folder(params, folder, base="dequantized"):
    """The merged model as the stage writes it, in a new folder."""
    folder.mkdir()
    different = write_merged(plan_of(params, base), folder)
    assert different == [], different
    merge_stage.copy_companions(folder, "v3")
    return folder
