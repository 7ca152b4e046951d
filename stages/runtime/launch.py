"""Starts the training as several processes: `python -m stages.train` becomes the agent that torchrun would be.

There are machine.devices processes on each of machine.nodes machines, which meet at machine.rendezvous. The agent is
PyTorch's own (torch.distributed.launcher, which torchrun itself calls), and it runs in this process. So a failure ends
with the message and the exit code of the process that failed, and a signal reaches each process once.
"""

import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from stages.core.machine import ResolvedMachine
from stages.core.params import Machine
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.signals import PATIENCE

if TYPE_CHECKING:
    from torch.distributed.launcher import LaunchConfig

EXPECTED_PROCESSES = "TRAIN_PROCESSES"  # set for the processes started here: how many there must be on all machines
ADDRESS = "TRAIN_ADDRESS"  # may be set on a machine with several addresses
JOIN_SECONDS = 900  # in which all machines must have been started


def launch(machine: Machine, resolved: ResolvedMachine, batches: int) -> None:
    """Returns in a process that will train. If there must be several, starts them and ends when they have ended.

    Args:
        machine: the section of params.yaml.
        resolved: the same, resolved in this process.
        batches: forward passes in an optimizer step.

    Raises:
        UserError: the processes cannot be as params.yaml says, or one failed.
    """
    check_other_launchers()
    if EXPECTED_PROCESSES in os.environ:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or C++ prints a stack trace when another machine has ended
    check_processes(machine, resolved, batches)
    if resolved.processes > 1:
        run_processes(machine, resolved.processes)


def check_other_launchers() -> None:
    """Checks that no other launcher started this process: params.yaml says how many processes there are.

    Raises:
        UserError: one did.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1" and EXPECTED_PROCESSES not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {world_size}, set by torchrun, accelerate launch or the like. Start it with `dvc repro "
            "train`; machine.devices in params.yaml says how many processes there are"
        )


def check_processes(machine: Machine, resolved: ResolvedMachine, batches: int) -> None:
    """Checks the number of processes that machine.devices and machine.nodes ask for. batches: see launch().

    Raises:
        UserError: there are fewer GPUs, or the processes cannot share the batches of an optimizer step evenly.
    """
    import torch

    gpus = torch.cuda.device_count() if resolved.on_cuda else None
    if gpus is not None and machine.devices != "auto" and machine.devices > gpus:
        raise UserError(
            f"machine.devices is {machine.devices}, but PyTorch sees {plural(gpus, 'CUDA device')}. Lower it, "
            "or set it to auto"
        )
    if machine.sharding != "none" and resolved.processes == 1:
        raise UserError("machine.sharding shares the base among several processes, and there is one: set it to none")
    if batches % resolved.processes:
        raise UserError(
            f"train.gradient_accumulation_steps is {batches}, which {resolved.processes} processes (machine.devices "
            "times machine.nodes) cannot share evenly: each optimizer step has the same rows whatever their number. "
            "Change machine.devices. Or make the steps a multiple, with another train.batch_size for as many rows"
        )


def run_processes(machine: Machine, processes: int) -> NoReturn:
    """Runs the processes of this machine to their end. Then ends this process as they ended.

    Args:
        machine: the section of params.yaml.
        processes: how many there are on all machines.
    """
    logging.disable(logging.ERROR)  # of the agent in this process only: the others report what happened themselves
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
    from torch.distributed.launcher import elastic_launch

    count = processes // machine.nodes
    os.environ[EXPECTED_PROCESSES] = str(processes)
    # As torchrun does it, but with all cores: more threads than cores mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    signal.set_wakeup_fd(-1)  # each process has its own patience; this one waits for them
    try:
        elastic_launch(launch_config(machine, count), sys.executable)("-m", "stages.train")
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise UserError(
                f"process {rank} of {processes} was ended by {name}. If nobody did that, the machine has too little "
                "memory for so many: lower machine.devices. Run it again, and it continues from the last checkpoint"
            ) from None
        sys.exit(failure.exitcode)
    except RendezvousTimeoutError:
        raise UserError(
            f"{machine.nodes} machines did not meet at {machine.rendezvous} within {JOIN_SECONDS} s. Start all of "
            "them, with the same params.yaml"
        ) from None
    except RendezvousError:
        raise UserError(
            f"the first machine cannot be reached at {machine.rendezvous}, or has ended; if so, it says why. Start it "
            "again, and open this port to the others"
        ) from None
    sys.exit(0)


def launch_config(machine: Machine, count: int) -> "LaunchConfig":
    """PyTorch's configuration of the agent. count: processes on this machine.

    Raises:
        UserError: machine.rendezvous cannot be reached.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher import LaunchConfig

    endpoint = machine.rendezvous if machine.nodes > 1 else "127.0.0.1:0"
    return LaunchConfig(
        min_nodes=machine.nodes,
        max_nodes=machine.nodes,
        nproc_per_node=count,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"timeout": JOIN_SECONDS, "join_timeout": JOIN_SECONDS, "read_timeout": JOIN_SECONDS},
        local_addr=own_address(endpoint) if machine.nodes > 1 else "127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=int(max(PATIENCE.values())) + 5,
    )


def own_address(rendezvous: str) -> str:
    """The address of this machine under which the one at the rendezvous reaches it. Nothing is sent.

    Raises:
        UserError: the rendezvous cannot be reached.
    """
    if address := os.environ.get(ADDRESS):
        return address
    host, _, port = rendezvous.rpartition(":")
    try:
        (family, kind, _, _, target), *_ = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"machine.rendezvous is {rendezvous}, which this machine cannot reach ({error})") from None
