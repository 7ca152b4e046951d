"""machine.sharding: fsdp, each process holds its part of the base and gathers one layer at a time (PyTorch's FSDP2).

The adapters stay whole in each process and are averaged as without sharding. They keep PEFT's forward, since that of
lora.py holds on to weights that are whole here only while a layer runs: the result is the same to rounding.
bitsandbytes' packed weights can be cut up since they are stored as bf16 (bnb_4bit_quant_storage), like the norms beside
them. Embeddings, head and quantization constants (a thirtieth of the weights, quantized themselves) stay whole too.
"""

from typing import TYPE_CHECKING

from stages._train.distributed import trained, world

if TYPE_CHECKING:
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
