"""What the processes of one training do together: come together, agree, average gradients.

The base is whole in each of them. No DistributedDataParallel: it averages what goes through its own forward, and the
loss is computed beside that (see stages/_train/trainer.py). Adapters are small, so their gradients are averaged in one
flat all-reduce an optimizer step, which leaves the same bits in every process.

Without torch.distributed, in the one process of machine.devices: 1, each function is what it is for one process.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.launch import PROCESSES

if TYPE_CHECKING:
    import torch

HOUR = datetime.timedelta(hours=1)  # a process waits so long for the others: rank 0 may be writing a checkpoint


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ["RANK"]) if world() > 1 else 0


def lead() -> None:
    """Makes the machine whose DVC waits for the results the one of rank 0: the rendezvous numbers machines as it likes.

    Raises:
        UserError: on several machines, DVC waits for the results.
    """
    import torch

    machines, here = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["GROUP_RANK"])
    if machines == 1:
        return
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["LOCAL_RANK"] == "0":
        store.set(f"train/dvc/{here}", str(int("DVC_STAGE" in os.environ)))
    waiting = [number for number in range(machines) if store.get(f"train/dvc/{number}") == b"1"]
    if len(waiting) > 1:
        raise UserError(
            f"on {len(waiting)} machines DVC waits for the results, which one of them gets. Run `dvc repro` on one, "
            "and `python -m stages.train` on the others"
        )
    if waiting:
        first = waiting[0] * int(os.environ["LOCAL_WORLD_SIZE"])
        os.environ["RANK"] = str((rank() - first) % world())
        os.environ["GROUP_RANK"] = str((here - waiting[0]) % machines)


def join(cuda: bool) -> None:
    """Brings the processes together and counts them; all but rank 0 fall silent.

    Raises:
        UserError: there are others than were asked for, of which each would train by itself without a word.
    """
    if world() == 1:
        return
    import torch

    lead()
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 it stays so to the end
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        torch.distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=HOUR)
        found = int(total(1)[0])
    except RuntimeError as error:
        raise UserError(
            f"the processes cannot connect ({first_line(error)}). Where a machine has several network interfaces, name "
            "the one that they share: GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0"
        ) from None
    if found != int(os.environ[PROCESSES]):
        raise UserError(
            f"{found} processes came together, {os.environ[PROCESSES]} were asked for: machine.devices must give the "
            "same number on each of the machine.nodes machines"
        )


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def leave() -> None:
    """The end of a process that is not rank 0: there is nothing to write."""
    import torch

    torch.distributed.destroy_process_group()
    sys.exit(0)


@contextlib.contextmanager
def with_the_others() -> Iterator[None]:
    """Where another process has ended, this one ends too; why, the other says."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world() == 1 or not any(name in text for name in ("gloo", "nccl", "connection closed by peer", "tcpstore")):
            raise
        if os.environ["LOCAL_RANK"] == "0":
            print(
                f"train: another process of this training has ended, so this one ends too ({first_line(error)})",
                file=sys.stderr,
            )
        sys.exit(1)


def agree(number: int) -> int:
    """The largest of the processes' numbers."""
    if world() == 1:
        return number
    import torch

    largest = torch.tensor(number)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def total(*numbers: float) -> list[float]:
    """The sums of the processes' numbers."""
    if world() == 1:
        return list(numbers)
    import torch

    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def trained(model: "torch.nn.Module") -> "list[torch.nn.Parameter]":
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def average_gradients(model: "torch.nn.Module") -> None:
    """Once an optimizer step, between its last backward pass and the clipping of its gradients."""
    if world() == 1:
        return
    import torch

    gradients = [parameter.grad for parameter in trained(model)]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def same_start(model: "torch.nn.Module", seed: int) -> None:
    """The adapter of rank 0 in all processes, and dropout of its own in each."""
    if world() == 1:
        return
    import torch

    for parameter in trained(model):
        torch.distributed.broadcast(parameter.data, 0)
    if rank():
        torch.manual_seed(seed + rank())


def refuse_divergence(model: "torch.nn.Module") -> None:
    """The same gradients and the same optimizer give the same bits, or something is broken."""
    if world() == 1:
        return
    import torch

    for parameter in trained(model):
        first = parameter.detach().clone()
        torch.distributed.broadcast(first, 0)
        if not torch.equal(*(each.detach().view(torch.uint8) for each in (first, parameter))):
            raise UserError(f"the adapter of process {rank()} is not that of process 0: a GPU or its memory is failing")
