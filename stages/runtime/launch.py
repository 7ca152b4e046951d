"""Starts the training as several processes: `python -m stages.train` becomes the agent that torchrun would be.

machine.devices of them on each of machine.nodes machines, which meet at machine.rendezvous. The agent is PyTorch's own
(torch.distributed.launcher, what torchrun itself calls), in this process, so that a failure ends with the message and
the exit code of the process that failed, and a signal reaches each process once.
"""

import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from stages.core.models import pick_device
from stages.core.params import Params
from stages.runtime.errors import UserError
from stages.runtime.signals import PATIENCE

if TYPE_CHECKING:
    from torch.distributed.launcher import LaunchConfig

PROCESSES = "TRAIN_PROCESSES"  # set for the processes started here: how many there must be on all machines
ADDRESS = "TRAIN_ADDRESS"  # may be set on a machine with several addresses
JOIN = 900  # seconds in which all machines must have been started


def devices(params: Params) -> int:
    """Processes on this machine. `auto` takes as many GPUs as divide the batches of an optimizer step evenly.

    Raises:
        UserError: there are fewer GPUs, or the batches of an optimizer step cannot be shared out.
    """
    import torch

    machine, batches = params.machine, params.train.gradient_accumulation_steps
    gpus = torch.cuda.device_count() if pick_device(machine).type == "cuda" else None
    if machine.devices == "auto":
        fitting = (n for n in range(gpus or 1, 0, -1) if batches % (n * machine.nodes) == 0)
        wanted = next(fitting, 1)
    else:
        wanted = machine.devices
    if gpus is not None and wanted > gpus:
        raise UserError(
            f"machine.devices is {wanted}, but PyTorch sees {gpus} CUDA devices. Lower it, or set it to auto"
        )
    total = wanted * machine.nodes
    if machine.sharding != "none" and total == 1:
        raise UserError("machine.sharding shares the base out over several processes, and there is one: set it to none")
    if batches % total:
        raise UserError(
            f"train.gradient_accumulation_steps is {batches}, which {total} processes (machine.devices times "
            "machine.nodes) cannot share evenly: each optimizer step has the same rows whatever their number. Change "
            "machine.devices; or make the steps a multiple, with another train.batch_size for as many rows"
        )
    return wanted


def refuse_other_launchers() -> None:
    """How many processes there are is read from params.yaml, and theirs are checked against it."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and PROCESSES not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {world}, set by torchrun, accelerate launch or the like. Start it with `dvc repro train`; "
            "machine.devices in params.yaml says how many processes there are"
        )


def address(rendezvous: str) -> str:
    """The address of this machine under which the one at the rendezvous reaches it. Nothing is sent."""
    if own := os.environ.get(ADDRESS):
        return own
    host, _, port = rendezvous.rpartition(":")
    try:
        (family, kind, _, _, target), *_ = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"machine.rendezvous is {rendezvous}, which this machine cannot reach ({error})") from None


def configuration(params: Params, count: int) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher import LaunchConfig

    machine = params.machine
    endpoint = machine.rendezvous if machine.nodes > 1 else "127.0.0.1:0"
    return LaunchConfig(
        min_nodes=machine.nodes,
        max_nodes=machine.nodes,
        nproc_per_node=count,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"timeout": JOIN, "join_timeout": JOIN, "read_timeout": JOIN},
        local_addr=address(endpoint) if machine.nodes > 1 else "127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=int(max(PATIENCE.values())) + 5,
    )


def launch(params: Params) -> None:
    """Returns in a process that is to train. Where there must be several, starts them and ends when they have ended."""
    refuse_other_launchers()
    if PROCESSES in os.environ:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or C++ says with a stack trace that another machine ended
    count = devices(params)
    if count * params.machine.nodes > 1:
        start(params, count)


def start(params: Params, count: int) -> NoReturn:
    """Runs the processes of this machine to their end, and ends with what became of them."""
    logging.disable(logging.ERROR)  # of the agent, in this process alone: the others say what happened themselves
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
    from torch.distributed.launcher import elastic_launch

    os.environ[PROCESSES] = str(count * params.machine.nodes)
    # As torchrun does it, but with all cores: more threads than cores mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    signal.set_wakeup_fd(-1)  # each process has its own patience; this one waits for them
    try:
        elastic_launch(configuration(params, count), sys.executable)("-m", "stages.train")
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise UserError(
                f"process {rank} of {os.environ[PROCESSES]} was ended by {name}. If that was nobody, the machine has "
                "too little memory for so many: lower machine.devices. Run again, it goes on from the last checkpoint"
            ) from None
        sys.exit(failure.exitcode)
    except RendezvousTimeoutError:
        raise UserError(
            f"{params.machine.nodes} machines did not come together at {params.machine.rendezvous} within {JOIN} s. "
            "Start all of them, with the same params.yaml"
        ) from None
    except RendezvousError:
        raise UserError(
            f"the first machine cannot be reached at {params.machine.rendezvous}, or has ended: then it says why. "
            "Start it again, and let this port through to it"
        ) from None
    sys.exit(0)
