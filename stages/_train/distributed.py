"""What the processes of one training do together: connect, agree on numbers, and average gradients.

Each process holds the whole base, unless machine.sharding is fsdp. There is no DistributedDataParallel: it averages
what goes through its own forward, and the loss is computed outside of that (see stages/_train/trainer.py). Adapters are
small. So their gradients are averaged in one flat all-reduce an optimizer step, which leaves the same bits in every
process.

In a training of one process there is no torch.distributed, and each function does what is right for one process.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.launch import EXPECTED_PROCESSES

if TYPE_CHECKING:
    import torch

TIMEOUT = datetime.timedelta(hours=1)  # for which a process waits for the others: rank 0 may write a checkpoint


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def join_processes(cuda: bool) -> None:
    """Connects the processes and counts them. All but rank 0 print nothing from here on.

    Raises:
        UserError: they cannot connect, or there are not as many as were asked for. Without the count, each group would
            train by itself without a word.
    """
    if world_size() == 1:
        return
    import torch

    give_rank_0_to_dvc()
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 it stays so to the end
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        torch.distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=TIMEOUT)
        count = int(all_reduce_sum(1)[0])
    except RuntimeError as error:
        raise UserError(
            f"the processes cannot connect ({first_line(error)}). If a machine has several network interfaces, name "
            "the one that they share: GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0"
        ) from None
    if count != int(os.environ[EXPECTED_PROCESSES]):
        raise UserError(
            f"{count} processes came together, {os.environ[EXPECTED_PROCESSES]} were asked for: machine.devices must "
            "give the same number on each of the machine.nodes machines"
        )


def give_rank_0_to_dvc() -> None:
    """Renumbers the processes so that rank 0 is on the machine whose DVC waits for the results.

    The rendezvous numbers machines as it likes.

    Raises:
        UserError: DVC waits on several machines.
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
        os.environ["RANK"] = str((rank() - first) % world_size())
        os.environ["GROUP_RANK"] = str((here - waiting[0]) % machines)


def leave_processes() -> None:
    """Ends a process that is not rank 0: it has nothing to write."""
    import torch

    torch.distributed.destroy_process_group()
    sys.exit(0)


@contextlib.contextmanager
def ended_with_others() -> Iterator[None]:
    """Ends this process inside the block when another one has ended. The other one says why it did."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        lost = ("gloo", "nccl", "connection closed by peer", "tcpstore")
        if world_size() == 1 or not any(name in text for name in lost):
            raise
        if os.environ["LOCAL_RANK"] == "0":
            print(
                f"train: another process of this training has ended, so this one ends too ({first_line(error)})",
                file=sys.stderr,
            )
        sys.exit(1)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def all_reduce_max(number: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return number
    import torch

    largest = torch.tensor(number)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def all_reduce_min(number: int) -> int:
    """The smallest of the processes' numbers."""
    return -all_reduce_max(-number)


def all_reduce_sum(*numbers: float) -> list[float]:
    """The sum over the processes of each of the numbers."""
    if world_size() == 1:
        return list(numbers)
    import torch

    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def trained_parameters(model: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """{name: parameter} of what is trained, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def average_gradients(model: "torch.nn.Module") -> None:
    """Call it once an optimizer step, between its last backward pass and the clipping of its gradients."""
    if world_size() == 1:
        return
    import torch

    gradients = [parameter.grad for parameter in trained_parameters(model).values()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def broadcast_start(model: "torch.nn.Module", seed: int) -> None:
    """Gives all processes the adapter of rank 0, and each one draws of its own for dropout."""
    if world_size() == 1:
        return
    import torch

    for parameter in trained_parameters(model).values():
        torch.distributed.broadcast(parameter.data, 0)
    if rank():
        torch.manual_seed(seed + rank())


def check_same_adapter(model: "torch.nn.Module") -> None:
    """Checks that all processes have the same adapter. The same gradients and optimizer give the same bits.

    Raises:
        UserError: this process has another adapter than rank 0.
    """
    if world_size() == 1:
        return
    import torch

    for parameter in trained_parameters(model).values():
        first = parameter.detach().clone()
        torch.distributed.broadcast(first, 0)
        if not torch.equal(*(tensor.detach().view(torch.uint8) for tensor in (first, parameter))):
            raise UserError(f"the adapter of process {rank()} is not that of process 0: a GPU or its memory is failing")
