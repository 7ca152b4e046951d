"""The model that is trained: the frozen base with the adapter on it, and what of it stays in memory.

With machine.sharding: fsdp each process holds its part of the base and gathers one layer at a time (PyTorch's FSDP2).
The adapters stay whole in each process, and their gradients are averaged as without sharding. They keep PEFT's forward.
The fused layers hold on to weights, and here these are whole only while a layer runs. So the result is the same to
rounding only. bitsandbytes' packed weights can be sharded because they are stored as bf16 (bnb_4bit_quant_storage),
like the norms. Embeddings, head and quantization constants stay whole; the constants are a thirtieth of the weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages._train.distributed import rank, trained_parameters, world_size
from stages.core.machine import ResolvedMachine
from stages.core.models import load_model
from stages.core.params import Lora, Quantization
from stages.core.paths import BASE
from stages.core.quantization import BaseValues, base_values, quantized_modules
from stages.runtime.errors import UserError
from stages.runtime.memory import MemoryPlan

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class PreparedModel:
    """The base with its adapter, ready to train.

    Args:
        model: base and adapter.
        base_bytes: what the base takes in memory as it was loaded.
        values: what its 4-bit layers compute with, in rank 0; empty in other processes.
        plan: what stays in memory.
        recompute: whether the Trainer must compute layers' activations again. Fused layers do that themselves.
    """

    model: "PeftModel"
    base_bytes: int
    values: BaseValues
    plan: MemoryPlan
    recompute: bool


def prepare_model(
    quantization: Quantization, lora: Lora, machine: ResolvedMachine, manifest: dict, plan: MemoryPlan
) -> PreparedModel:
    """Loads models/base and puts a fresh adapter on it.

    Args:
        quantization: the section of params.yaml.
        lora: the section of params.yaml.
        machine: where it is trained.
        manifest: of models/base.
        plan: what stays in memory.

    Raises:
        UserError: lora.target_modules does not fit the base.
    """
    from stages.core.attention import register_varlen
    from stages.core.fused.layer import fuse

    register_varlen()
    base = load_model(BASE, machine, quantization, packed=True)
    base_bytes = loaded_bytes(base)
    values = base_values(base) if rank() == 0 else BaseValues({}, {})  # now, while the base is whole and in 4 bits
    model = add_adapter(base, lora, manifest)
    if machine.sharding == "fsdp":
        shard_base(model)
        fused = False  # a layer's weights are whole only while its own forward runs
    else:
        fused = fuse(model, **vars(plan))
    return PreparedModel(model, base_bytes, values, plan, recompute=not fused and not plan.activations)


def add_adapter(model: "torch.nn.Module", lora: Lora, manifest: dict) -> "PeftModel":
    """The model with fresh LoRA weights, whose config names the base that they belong to.

    Raises:
        UserError: lora.target_modules does not fit the base.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else sorted(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        revision=manifest["revision"],
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora.target_modules does not fit the base model: {error}") from None
    peft_model.peft_config["default"].base_model_name_or_path = manifest["id"] or manifest["path"]
    return peft_model


def shard_base(model: "PeftModel") -> None:
    """Shards the base over the processes, in place. Afterwards it runs only in all processes at once."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    backbone = model.get_base_model().model
    mesh = init_device_mesh("cuda" if next(backbone.parameters()).is_cuda else "cpu", (world_size(),))
    whole = set(trained_parameters(model).values())
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # The backbone itself has nothing left to shard. As the root it lets a layer be gathered while another computes.
    rest = {parameter for parameter in backbone.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(backbone, mesh=mesh, ignored_params=rest)


def loaded_bytes(model: "torch.nn.Module") -> int:
    """Bytes that the weights of a freshly loaded model take in memory, with the quantization constants."""
    import bitsandbytes

    total = sum(parameter.nbytes for parameter in model.parameters())
    for _, module in quantized_modules(model):
        state = module.weight.quant_state
        total += state.absmax.nbytes + state.code.nbytes
        if state.nested:
            total += state.state2.absmax.nbytes + state.state2.code.nbytes
    eight_bit = (module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt))
    total += sum(module.weight.SCB.nbytes for module in eight_bit)  # the first forward pass moves it elsewhere
    return total
