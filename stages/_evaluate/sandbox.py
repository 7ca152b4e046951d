"""Runs code that a model wrote, where it can do no harm: in bubblewrap, with little time, memory and room.

The code sees the interpreter and the system's libraries, read-only, and an empty folder in memory; no network, no
process but its own, no environment variable. Nothing that it prints is kept, so that all it can say is one word.
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
FOLDER_BYTES = 16 * MIB  # of the folder in memory, and of one file
MOST_PROCESSES = 16  # threads count as well
MOST_FILES = 64  # open at one time, in one process
CLOCK_FACTOR = 5  # so many times the allowed CPU time may pass on the clock: a busy machine fails no test
CAPABILITIES = ("CAP_SETUID", "CAP_SETGID")  # which root needs to become somebody else
SANDBOX_ADVICE = "or set evaluate.run_tests: false"
# They begin at random, so that two evaluations at one time hardly take the same users.
RUN_NUMBERS = itertools.count(secrets.randbelow(1 << 32))


@dataclass(frozen=True)
class Program:
    """An answer's code, and the tests that come with its record."""

    answer: str
    tests: str


def library_options() -> Iterator[str]:
    """bwrap's options for what a Python needs of the file system."""
    interpreter = os.path.realpath(sys._base_executable)
    folders = dict.fromkeys(["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(Path(sys.base_prefix, "lib"))])
    paths = (*folders, interpreter, "/etc/ld.so.cache")
    # bwrap makes them for its own user alone, and nobody would not get through.
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
    """bwrap and its options, up to the interpreter's program.

    Raises:
        UserError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the answers to them run in bubblewrap, which is not "
            f"installed. Install it (Debian, Ubuntu: apt-get install bubblewrap), {SANDBOX_ADVICE}"
        )
    # Root has no need of a user namespace, in which the limit on processes would not hold for it: it becomes a user of
    # its own. Everybody else gets a namespace, and none below it.
    user = [] if is_root() else ["--unshare-user", "--disable-userns"]
    capabilities = [word for name in CAPABILITIES for word in ("--cap-add", name)] if is_root() else []
    room = ["--perms", "1777", "--size", str(FOLDER_BYTES), "--tmpfs"]
    return [
        *(bwrap, *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", *capabilities, *library_options()),
        *("--dev", "/dev", *room, "/dev/shm", *room, "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"),  # noqa: S108
        *("--chdir", "/tmp", "--clearenv", "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0"),  # noqa: S108
        # -P and -S: nothing but the standard library.
        *(os.path.realpath(sys._base_executable), "-B", "-P", "-S", "-s", "-c", Path(inside.__file__).read_text()),
    ]


def unused_user() -> int:
    """An id that no user has and no other sandbox: the kernel counts all processes of a user against RLIMIT_NPROC.

    From the upper half of those that there are here: containers have few.
    """
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    first, _, count = max((list(map(int, line.split())) for line in lines), key=lambda id_range: id_range[2])
    users = range(first + count // 2, first + count)
    return users[next(RUN_NUMBERS) % len(users)]


def memory_file(content: bytes) -> BinaryIO:
    """A file to be read from its beginning."""
    file = open(os.memfd_create("given"), "w+b")  # noqa: SIM115  (the caller closes it)
    file.write(content)
    file.seek(0)
    return file


def run_program(program: Program, seconds: int, megabytes: int) -> tuple[str, str]:
    """(passed | failed | stopped, what bubblewrap said). Stopped: the limits on time or memory ended it.

    seconds: of CPU in one process, and WAITS times as many in all. megabytes: that one process maps, and that all use.
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
        process.kill()  # and with it, by --die-with-parent, all in the sandbox
        process.wait()
    errors = process.stderr.read(2000).decode(errors="replace").strip()
    process.stdout.close()
    process.stderr.close()
    if output == word.encode():
        return "passed", errors
    # Signals end a process that has used up its time.
    return "failed" if in_time and 0 <= process.returncode < 128 else "stopped", errors


def check_sandbox() -> None:
    """Stops where no sandbox can be made.

    Raises:
        UserError: bubblewrap is missing, too old, or may not make namespaces here.
    """
    outcome, errors = run_program(Program("", ""), seconds=60, megabytes=512)
    if outcome != "passed":
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the sandbox for the answers to them does not start: "
            f"{' '.join(errors.split()) or outcome}. It needs bubblewrap 0.8 or later and leave to make namespaces, "
            f"which containers and some distributions withhold. Allow it, {SANDBOX_ADVICE}"
        )


def run_programs(programs: list[Program], params: Evaluate, workers: int) -> list[str]:
    """passed, failed or stopped, of each program in order."""
    with ThreadPoolExecutor(workers) as pool:
        limits = params.test_seconds, params.test_megabytes
        return [outcome for outcome, _ in pool.map(lambda program: run_program(program, *limits), programs)]
