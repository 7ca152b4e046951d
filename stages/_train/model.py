"""machine.sharding: fsdp, each process holds its part of the base and gathers one layer at a time (PyTorch's FSDP2).

The adapters stay whole in each process and are averaged as without sharding. They keep PEFT's forward, since that of
lora.py holds on to weights that are whole here only while a layer runs: the result is the same to rounding.
bitsandbytes' packed weights can be cut up since they are stored as bf16 (bnb_4bit_quant_storage), like the norms beside
them. Embeddings, head and quantization constants (a thirtieth of the weights, quantized themselves) stay whole too.
"""

from typing import TYPE_CHECKING

from stages._train.distributed import agree, rank, trained, world
from stages.core.models import load_model, pick_attention, pick_device
from stages.core.params import Lora, Params
from stages.core.paths import BASE, read_json
from stages.core.quantization import Values, quantized_modules, values_of
from stages.runtime.errors import UserError
from stages.runtime.memory import GIB, OVERHEAD, SLACK, Keep, choose, device_memory, estimate, shape_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def shard(model: "PeftModel") -> None:
    """In place; afterwards the base runs only in all processes at once."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    backbone = model.get_base_model().model
    mesh = init_device_mesh("cuda" if next(backbone.parameters()).is_cuda else "cpu", (world(),))
    whole = set(trained(model))
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # The backbone itself has nothing left to cut up; as the root it lets a layer be gathered while another computes.
    rest = {parameter for parameter in backbone.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(backbone, mesh=mesh, ignored_params=rest)


# The model that is trained: the frozen base with the adapter on it, and what of it stays in memory.


def prepare_model(params: Params, manifest: dict, keep: Keep) -> "tuple[PeftModel, int, Values]":
    """The base with a fresh adapter, ready to train, the bytes of the base as quantized, and its values
    (in rank 0)."""
    from stages.core.attention import register
    from stages.core.fused.layer import fuse

    register()
    model = load_model(BASE, params.machine, params.quantization, packed=True)
    base_bytes = quantized_bytes(model)
    values = values_of(model) if rank() == 0 else Values({}, {})  # now, while the base is whole and in 4 bits
    model = add_adapter(model, params.lora, manifest)
    if params.machine.sharding == "fsdp":
        shard(model)  # a layer's weights are whole only while its own forward runs
    else:
        fuse(model, **vars(keep))
    return model, base_bytes, values


def pick_memory(params: Params, longest_row: int) -> Keep:
    varlen = pick_attention(params.machine, packed=True) == "varlen"
    cuda = pick_device(params.machine).type == "cuda"
    shape, budget = shape_of(read_json(BASE / "config.json")), device_memory(cuda)
    keep = choose(shape, params, longest_row, varlen, budget, cuda)
    if params.machine.sharding == "fsdp":  # a layer is gathered as often in every process, whatever its memory
        keep = Keep(-agree(-keep.activations), 0)
    print(
        f"train: machine.memory {params.machine.memory} keeps {keep}; the rest is computed again "
        "(python -m stages.train --plan says why)",
        flush=True,
    )
    needed = estimate(shape, params, keep, longest_row, varlen)
    if cuda and not needed.fits(budget):  # a line only: it is an estimate
        print(
            f"train: that needs about {(needed.total * SLACK + OVERHEAD) / GIB:.1f} GiB of the GPU's "
            f"{budget / GIB:.1f}. If it runs out of memory, lower train.batch_size or tokenize.max_length",
            flush=True,
        )
    return keep


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


def quantized_bytes(model: "torch.nn.Module") -> int:
    """Bytes that the weights of a freshly loaded model take in memory, the quantization constants included."""
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
