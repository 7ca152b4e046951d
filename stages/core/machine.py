"""The machine that a stage runs on: device, number format, attention, processes.

A stage that loads a model calls resolve_machine() once at its start and hands the result on. So nothing is decided
twice, and no function needs the section `machine` of params.yaml for it.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.core.params import Machine
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

# Positions whose logits exist at one time in training, by type of device. On a CPU: as few as its caches hold.
LOGIT_ROWS = {"cuda": 1024, "cpu": 128}


@dataclass(frozen=True)
class ResolvedMachine:
    """What this process computes with.

    Args:
        device: the device of this process.
        dtype: the dtype of weights that are not quantized, and of matrix products.
        attention: transformers' name for the attention function of rows with one conversation each.
        packed_attention: the same for packed rows. "varlen" is the function in stages/core/attention.py.
        sharding: "none": each process holds the whole base. "fsdp": each holds a part of it.
        processes: how many train together, on all machines. It is 1 in stages other than train.
        local_rank: the number of this process on its machine, or None where no launcher started it.
    """

    device: "torch.device"
    dtype: "torch.dtype"
    attention: str
    packed_attention: str
    sharding: str
    processes: int
    local_rank: int | None

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shards(self) -> int:
        """Processes that share the base among them."""
        return 1 if self.sharding == "none" else self.processes

    @property
    def is_sharded_process(self) -> bool:
        """Whether this process will hold a part of the base only. Merging never does, whatever machine.sharding is."""
        return self.sharding == "fsdp" and self.local_rank is not None


def resolve_machine(machine: Machine, batches: int | None = None) -> ResolvedMachine:
    """Resolves the section `machine` of params.yaml on this machine, in this process.

    Args:
        machine: the section.
        batches: forward passes in an optimizer step, which the processes of a training share. None: no training.

    Raises:
        UserError: machine.device is cuda, and there is no CUDA device.
    """
    import torch

    local_rank = int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None
    device = pick_device(machine, local_rank)
    attention, packed_attention = pick_attention(machine)
    return ResolvedMachine(
        device=device,
        dtype=torch.bfloat16,
        attention=attention,
        packed_attention=packed_attention,
        sharding=machine.sharding,
        processes=count_processes(machine, batches, device, local_rank),
        local_rank=local_rank,
    )


def pick_device(machine: Machine, local_rank: int | None) -> "torch.device":
    import torch

    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but PyTorch sees no CUDA device. Set it to auto or cpu")
    if machine.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def pick_attention(machine: Machine) -> tuple[str, str]:
    """The attention functions of plain and of packed rows. Only packed rows have the bounds that varlen needs."""
    if machine.attention in ("auto", "varlen"):
        return "sdpa", "varlen"
    return machine.attention, machine.attention


def count_processes(machine: Machine, batches: int | None, device: "torch.device", local_rank: int | None) -> int:
    """The processes of a training on all machines. `auto` takes as many GPUs as divide the batches evenly."""
    if local_rank is not None:
        return int(os.environ.get("WORLD_SIZE", "1"))
    if batches is None:
        return 1
    if machine.devices != "auto":
        return machine.devices * machine.nodes
    import torch

    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    counts = (count * machine.nodes for count in range(gpus, 0, -1))
    return next((count for count in counts if batches % count == 0), machine.nodes)
