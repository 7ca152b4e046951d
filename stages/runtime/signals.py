"""Being stopped: what SIGTERM (a spot instance, Slurm, `kill`) and Ctrl-C do to a training, and outliving no DVC."""

import contextlib
import os
import signal
import sys
import threading
import time
from itertools import pairwise

import psutil

PATIENCE = {signal.SIGTERM: 30.0, signal.SIGINT: 10.0}  # seconds that the running step and its checkpoint may take
POLL = 0.2  # seconds


def say(text: str) -> None:
    """A line on standard error, from a signal handler too, where print() may find its own buffer locked.

    Of several processes rank 0 alone speaks."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"train: {text}\n".encode())


class Stop:
    """While `training`, a signal waits for the next checkpoint; before and after, it ends the process at once.

    `saved` is the optimizer step of the last checkpoint. After PATIENCE, or at a signal after Ctrl-C, that one must do.
    """

    def __init__(self) -> None:
        self.training, self.received, self.saved = False, 0, 0

    def install(self) -> None:
        # Python runs its handlers between two bytecodes of the main thread, so a kernel that hangs would hold them up.
        # The interpreter's own C handler writes the signal's number to this pipe all the same.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self.lose_patience, args=(reader,), daemon=True).start()
        for number in PATIENCE:
            signal.signal(number, self.handle)

    def lose_patience(self, reader: int) -> None:
        number = 0
        while number not in PATIENCE:
            number = os.read(reader, 1)[0]
        time.sleep(PATIENCE[number])
        say(f"no checkpoint within {PATIENCE[number]:g} s of the signal. {self.next_run()}")
        os._exit(128 + number)

    def handle(self, number: int, frame: object) -> None:
        again = self.received == signal.SIGINT
        self.received = self.received or number
        if again or not self.training:
            self.leave()
        say(f"{signal.Signals(number).name}: ends after this step, with a checkpoint")

    def leave(self) -> None:
        """Ends the process by an exception, with the exit code that shells give to its signal: 143 or 130."""
        say(f"stopped by {signal.Signals(self.received).name}. {self.next_run()}")
        if self.received == signal.SIGINT and "RANK" not in os.environ:
            raise KeyboardInterrupt
        sys.exit(128 + self.received)

    def next_run(self) -> str:
        return (
            f"The next run with the same values goes on from step {self.saved}"
            if self.saved
            else "No step was saved yet"
        )


def die_with_parent() -> None:
    """SIGTERM for this process when DVC dies: killed, DVC would leave its trainer running.

    DVC starts a stage by $SHELL or /bin/sh, and some of them (dash) stay in between as long as the stage runs. So the
    kernel's own signal for the death of a parent (prctl(2), PR_SET_PDEATHSIG) would not come.
    """
    me = psutil.Process()
    between = me.parents()[:1]
    if not between:  # the first process of a container
        return
    # Adopted, since DVC ended before this call; unless DVC is itself the first process of a container.
    if "DVC_STAGE" in os.environ and between[0].pid == 1 and not any("dvc" in word for word in between[0].cmdline()):
        sys.exit("train: DVC ended before the training began")
    if "-c" in between[0].cmdline():
        between = me.parents()[:2]
    threading.Thread(target=watch, args=([me, *between],), daemon=True).start()


def watch(line: list[psutil.Process]) -> None:
    """Waits until one of these processes, each the child of the next, has lost its parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while all(child.ppid() == parent.pid for child, parent in pairwise(line)):
            time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)
