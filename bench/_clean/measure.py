"""Seconds and memory of a process and those it starts."""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

INTERVAL = 0.05  # seconds between two looks at the memory


class Measured(NamedTuple):
    seconds: float
    processors: float  # seconds of them, of all the processes together, but for what each did after the last look
    peak: int  # bytes


def memory(process: psutil.Process) -> int:
    """Bytes; of pages that several processes share, where the system says so, each counts its part."""
    try:
        return getattr(info := process.memory_full_info(), "pss", info.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def processors(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return times.user + times.system
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def measure(command: list[str], folder: Path, env: dict[str, str]) -> Measured:
    """Runs the command in the folder; what it prints goes to output.txt there.

    Raises:
        SystemExit: the command failed.
    """
    peak, started = 0, time.perf_counter()
    spent: dict[int, float] = {}  # by process, as of the last look at it
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        running = psutil.Popen(command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
        while running.poll() is None:
            try:
                family = [running, *running.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            peak = max(peak, sum(map(memory, family)))
            spent |= {process.pid: processors(process) or spent.get(process.pid, 0) for process in family}
            time.sleep(INTERVAL)
        code = running.wait()
    seconds = time.perf_counter() - started
    if code:
        text = (folder / "output.txt").read_text(encoding="utf-8")
        sys.exit(f"{' '.join(command)} ended with {code}:\n{text[-2000:]}")
    return Measured(seconds, sum(spent.values()), peak)
