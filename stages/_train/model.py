"""The model that is trained: the frozen base with the adapter on it, and what of it stays in memory."""

from typing import TYPE_CHECKING

from stages._train.activations import shape_of
from stages._train.adapter import add_adapter, quantized_bytes
from stages._train.distributed import agree, rank
from stages._train.memory import GIB, OVERHEAD, SLACK, Keep, choose, device_memory, estimate
from stages._train.sharding import shard
from stages.shared.four_bit import Values, values_of
from stages.shared.models import load_model, pick_attention, pick_device
from stages.shared.params import Params
from stages.shared.paths import BASE, read_json

if TYPE_CHECKING:
    from peft import PeftModel


def prepare_model(params: Params, manifest: dict, keep: Keep) -> "tuple[PeftModel, int, Values]":
    """The base with a fresh adapter, ready to train, the bytes of the base as quantized, and its values
    (in rank 0)."""
    from stages.shared.attention import register
    from stages.shared.fused.layer import fuse

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
