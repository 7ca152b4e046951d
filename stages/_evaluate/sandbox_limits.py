"""Waits for a sandbox, and stops waiting when it has used up its time or memory."""

import os
import select
import subprocess
import time

LOOK_SECONDS = 0.05  # between two checks of the memory in use


def memory_of_children(pid: int) -> int:
    """Bytes that the processes below this one have in memory."""
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
    """Reads what the process writes, until it ends or has reached a limit.

    Args:
        limit: Bytes to read. The result may have one more.
        deadline: A value of time.monotonic().
        memory: Bytes that the process and its children may use.

    Returns:
        (the bytes, whether the process ended in time and within its memory)
    """
    output, pipe = b"", process.stdout.fileno()
    while time.monotonic() < deadline:
        if select.select([pipe], [], [], LOOK_SECONDS)[0]:
            piece = os.read(pipe, limit + 1)
            output += piece
            if len(output) >= limit:
                return output, True
            if not piece:  # it has closed its output, mostly because it ends
                return output, ends_in_time(process, deadline)
        if memory_of_children(process.pid) > memory:
            return output, False
    return output, False


def ends_in_time(process: subprocess.Popen, deadline: float) -> bool:
    """Waits for the end of the process until the deadline."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
