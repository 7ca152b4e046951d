"""What SIGTERM (a spot instance, Slurm, `kill`) and Ctrl-C do to a training, and how it ends when DVC dies."""

import contextlib
import os
import signal
import sys
import threading
import time
from itertools import pairwise

import psutil

PATIENCE = {signal.SIGTERM: 30.0, signal.SIGINT: 10.0}  # seconds for the running step and its checkpoint
POLL = 0.2  # seconds


def write_stderr(text: str) -> None:
    """Writes a line to standard error. In a signal handler print() may find its own buffer locked.

    Of several processes only rank 0 writes.
    """
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"train: {text}\n".encode())


class Stop:
    """How a signal ends the process. While `training` it waits for the next checkpoint; otherwise it acts at once.

    After PATIENCE, or at a signal after Ctrl-C, the process ends without a new checkpoint.

    Attributes:
        training: whether optimizer steps are being taken.
        received: the number of the first signal, or 0.
        saved: the optimizer step of the last checkpoint, or 0.
    """

    def __init__(self) -> None:
        self.training, self.received, self.saved = False, 0, 0

    def install(self) -> None:
        """Takes over the signals of PATIENCE."""
        # Python runs its handlers between two bytecodes of the main thread, so a kernel that hangs would delay them.
        # The interpreter's own C handler writes the signal's number to this pipe all the same.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self.lose_patience, args=(reader,), daemon=True).start()
        for number in PATIENCE:
            signal.signal(number, self.handle)

    def lose_patience(self, reader: int) -> None:
        """Ends the process PATIENCE after the first signal. reader: the pipe that signals are written to."""
        number = 0
        while number not in PATIENCE:
            number = os.read(reader, 1)[0]
        time.sleep(PATIENCE[number])
        write_stderr(f"no checkpoint within {PATIENCE[number]:g} s of the signal. {self.next_run()}")
        os._exit(128 + number)

    def handle(self, number: int, frame: object) -> None:
        repeated = self.received == signal.SIGINT
        self.received = self.received or number
        if repeated or not self.training:
            self.leave()
        write_stderr(f"{signal.Signals(number).name}: ends after this step, with a checkpoint")

    def leave(self) -> None:
        """Ends the process by an exception, with the exit code that shells give to its signal: 143 or 130."""
        write_stderr(f"stopped by {signal.Signals(self.received).name}. {self.next_run()}")
        if self.received == signal.SIGINT and "RANK" not in os.environ:
            raise KeyboardInterrupt
        sys.exit(128 + self.received)

    def next_run(self) -> str:
        if not self.saved:
            return "No step was saved yet"
        return f"The next run with the same values continues from step {self.saved}"


def die_with_parent() -> None:
    """Sends SIGTERM to this process when DVC dies. A killed DVC would leave its trainer running.

    DVC starts a stage by $SHELL or /bin/sh. Some shells (dash) stay in between as long as the stage runs. So the
    kernel's own signal for the death of a parent (prctl(2), PR_SET_PDEATHSIG) would not come.
    """
    process = psutil.Process()
    ancestors = process.parents()[:1]
    if not ancestors:  # the first process of a container
        return
    parent = ancestors[0]
    # Its parent is process 1 if DVC ended before this call, unless DVC is itself the first process of a container.
    if "DVC_STAGE" in os.environ and parent.pid == 1 and not any("dvc" in word for word in parent.cmdline()):
        sys.exit("train: DVC ended before the training began")
    if "-c" in parent.cmdline():
        ancestors = process.parents()[:2]
    threading.Thread(target=wait_for_orphan, args=([process, *ancestors],), daemon=True).start()


def wait_for_orphan(family: list[psutil.Process]) -> None:
    """Waits until a process of the family has lost its parent, and then ends this one. Each is the next one's child."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while all(child.ppid() == parent.pid for child, parent in pairwise(family)):
            time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)
