"""Being stopped: what SIGTERM (a spot instance, Slurm, `kill`) and Ctrl-C do to a training, and outliving no DVC."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PATIENCE = {signal.SIGTERM: 30.0, signal.SIGINT: 10.0}  # seconds that the running step and its checkpoint may take
PR_SET_PDEATHSIG = 1  # prctl(2)


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
    """On Linux, SIGTERM for this process when DVC dies: killed, DVC would leave its trainer running (man 2 prctl)."""
    parent = os.getppid()
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # A parent that died before the call sends nothing any more: by then this process belongs to another one.
    adopted = parent == 1 and "DVC_STAGE" in os.environ and b"dvc" not in Path("/proc/1/cmdline").read_bytes()
    if adopted or os.getppid() != parent:
        sys.exit("train: DVC ended before the training began")
