"""Waits for a sandbox, and looks at the time and memory that it takes meanwhile."""

import os
import select
import subprocess
import time

LOOKS = 0.05  # seconds between two looks at how much memory is in use


def memory_in_use(pid: int) -> int:
    """Bytes that the process and all below it have in memory."""
    import psutil

    total = 0
    try:
        for process in psutil.Process(pid).children(recursive=True):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0
    return total


def watched(process: subprocess.Popen, most: int, deadline: float, memory: int) -> tuple[bytes, bool]:
    """What the process wrote, at most `most` bytes and one, and whether it ended by itself in time and memory."""
    said, pipe = b"", process.stdout.fileno()
    while time.monotonic() < deadline:
        if select.select([pipe], [], [], LOOKS)[0]:
            piece = os.read(pipe, most + 1)
            said += piece
            if len(said) >= most:
                return said, True
            if not piece:  # it has closed its side: most often since it is at its end
                return said, ended(process, deadline)
        if memory_in_use(process.pid) > memory:
            return said, False
    return said, False


def ended(process: subprocess.Popen, deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
