"""Waits for a sandbox, and looks at the time and memory that it takes meanwhile."""

import os
import select
import subprocess
import time

LOOK_SECONDS = 0.05  # seconds between two looks at how much memory is in use


def memory_of_children(pid: int) -> int:
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


def read_within_limits(process: subprocess.Popen, limit: int, deadline: float, memory: int) -> tuple[bytes, bool]:
    """What the process wrote, at most `most` bytes and one, and whether it ended by itself in time and memory."""
    output, pipe = b"", process.stdout.fileno()
    while time.monotonic() < deadline:
        if select.select([pipe], [], [], LOOK_SECONDS)[0]:
            piece = os.read(pipe, limit + 1)
            output += piece
            if len(output) >= limit:
                return output, True
            if not piece:  # it has closed its side: most often since it is at its end
                return output, ends_in_time(process, deadline)
        if memory_of_children(process.pid) > memory:
            return output, False
    return output, False


def ends_in_time(process: subprocess.Popen, deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
