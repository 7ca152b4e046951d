"""Runs code that a model wrote where it can do no harm: in bubblewrap, with little time, memory and space.

The code sees the interpreter and the system's libraries, read-only, and an empty folder in memory. It has no network,
no environment variables, and sees no other processes. What it prints is dropped. The only thing that it can report is
one word.
"""

import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from stages._evaluate import sandbox_runner as inside
from stages._evaluate.sandbox_limits import read_within_limits
from stages._evaluate.seccomp import call_filter
from stages.core.params import Evaluate
from stages.runtime.errors import UserError

MIB = 1 << 20
FOLDER_BYTES = 16 * MIB  # bytes of the folder in memory, and of one file
MOST_PROCESSES = 16  # and threads
MOST_FILES = 64  # open at a time in one process
CLOCK_FACTOR = 5  # clock time allowed per CPU time, so that no test fails because the machine is busy
CAPABILITIES = ("CAP_SETUID", "CAP_SETGID")  # root needs them to become another user
SANDBOX_ADVICE = "or set evaluate.run_tests: false"
# The start is random, so that two evaluations at a time rarely take the same users.
RUN_NUMBERS = itertools.count(secrets.randbelow(1 << 32))


@dataclass(frozen=True)
class Program:
    """An answer's code, and the tests that come with its record."""

    answer: str
    tests: str


def library_options() -> Iterator[str]:
    """bwrap's options for the files that a Python needs."""
    interpreter = os.path.realpath(sys._base_executable)
    folders = dict.fromkeys(["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(Path(sys.base_prefix, "lib"))])
    paths = (*folders, interpreter, "/etc/ld.so.cache")
    # bwrap makes folders that only its own user may enter, and `nobody` could not.
    for parent in dict.fromkeys(str(folder) for path in paths for folder in reversed(Path(path).parents)):
        yield from ("--perms", "0755", "--dir", parent)
    for path in paths:
        if Path(path).is_symlink():
            yield from ("--symlink", str(Path(path).readlink()), path)
        elif Path(path).exists():
            yield from ("--ro-bind", path, path)


def is_root() -> bool:
    return os.getuid() == 0


@cache
def bwrap_command() -> list[str]:
    """bwrap with its options, and the interpreter with the program that runs inside.

    Raises:
        UserError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the answers to them run in bubblewrap, which is not "
            f"installed. Install it (Debian, Ubuntu: apt-get install bubblewrap), {SANDBOX_ADVICE}"
        )
    # Root needs no user namespace, where the limit on processes would not hold for it. It becomes an unused user
    # instead. Everybody else gets a user namespace, and cannot make another inside.
    user = [] if is_root() else ["--unshare-user", "--disable-userns"]
    capabilities = [word for name in CAPABILITIES for word in ("--cap-add", name)] if is_root() else []
    room = ["--perms", "1777", "--size", str(FOLDER_BYTES), "--tmpfs"]
    return [
        *(bwrap, *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", *capabilities, *library_options()),
        *("--dev", "/dev", *room, "/dev/shm", *room, "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"),  # noqa: S108
        *("--chdir", "/tmp", "--clearenv", "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0"),  # noqa: S108
        # -P and -S: only the standard library.
        *(os.path.realpath(sys._base_executable), "-B", "-P", "-S", "-s", "-c", Path(inside.__file__).read_text()),
    ]


def unused_user() -> int:
    """An id that no user and no other sandbox has: the kernel counts all processes of a user against RLIMIT_NPROC.

    It is from the upper half of the ids on this machine, since containers have few.
    """
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    first, _, count = max((list(map(int, line.split())) for line in lines), key=lambda id_range: id_range[2])
    users = range(first + count // 2, first + count)
    return users[next(RUN_NUMBERS) % len(users)]


def memory_file(content: bytes) -> BinaryIO:
    """A file in memory with this content, ready to be read from its beginning."""
    file = open(os.memfd_create("given"), "w+b")  # noqa: SIM115  (the caller closes it)
    file.write(content)
    file.seek(0)
    return file


def run_program(program: Program, seconds: int, megabytes: int) -> tuple[str, str]:
    """Runs an answer and its tests.

    Args:
        seconds: CPU time of one process. All of them together get CLOCK_FACTOR times as much on the clock.
        megabytes: Memory that one process may map, and that all together may use.

    Returns:
        (passed, failed or stopped; what bubblewrap said). Stopped means that a limit on time or memory ended it.
    """
    word = secrets.token_hex(16)
    memory = megabytes * MIB
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_NPROC": MOST_PROCESSES, "RLIMIT_NOFILE": MOST_FILES}
    limits |= {"RLIMIT_FSIZE": FOLDER_BYTES, "RLIMIT_CORE": 0}
    job = json.dumps({"limits": limits, "user": unused_user() if is_root() else None, "word": word, **vars(program)})
    with memory_file(job.encode()) as given, memory_file(call_filter(SANDBOX_ADVICE)) as calls:
        bwrap, *rest = bwrap_command()
        process = subprocess.Popen(  # noqa: S603
            [bwrap, "--seccomp", str(calls.fileno()), *rest],
            **{"stdin": given, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
            pass_fds=[calls.fileno()],
        )
    try:
        output, in_time = read_within_limits(process, len(word), time.monotonic() + CLOCK_FACTOR * seconds, memory)
    finally:
        process.kill()  # --die-with-parent then ends everything in the sandbox
        process.wait()
    errors = process.stderr.read(2000).decode(errors="replace").strip()
    process.stdout.close()
    process.stderr.close()
    if output == word.encode():
        return "passed", errors
    # A process that has used up its CPU time is ended by a signal.
    return "failed" if in_time and 0 <= process.returncode < 128 else "stopped", errors


def check_sandbox() -> None:
    """Checks that a sandbox can be made.

    Raises:
        UserError: bubblewrap is missing or too old, or may not make namespaces here.
    """
    outcome, errors = run_program(Program("", ""), seconds=60, megabytes=512)
    if outcome != "passed":
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the sandbox for the answers to them does not start: "
            f"{' '.join(errors.split()) or outcome}. It needs bubblewrap 0.8 or later and permission to make "
            f"namespaces, which containers and some distributions do not give. Allow it, {SANDBOX_ADVICE}"
        )


def run_programs(programs: list[Program], params: Evaluate, workers: int) -> list[str]:
    """Runs the programs at the same time. Returns passed, failed or stopped for each, in their order."""
    with ThreadPoolExecutor(workers) as pool:
        limits = params.test_seconds, params.test_megabytes
        return [outcome for outcome, _ in pool.map(lambda program: run_program(program, *limits), programs)]
