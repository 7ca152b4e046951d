"""A filter of system calls (seccomp, Linux' Documentation/userspace-api/seccomp_filter.rst) for the sandbox.

It refuses what the limits on processes do not count: memory that belongs to no process, and a user namespace, in which
code may mount folders in memory. It is a program of classic BPF over `struct seccomp_data`, as `bwrap --seccomp` reads
it.
"""

import platform
import struct
from typing import NamedTuple

from stages.runtime.errors import UserError


class SyscallTable(NamedTuple):
    """Numbers of linux/audit.h and asm/unistd.h."""

    architecture: int
    refused: tuple[int, ...]  # shmget, msgget, semget, memfd_create, memfd_secret
    clone: int
    unshare: int
    clone3: int


SYSCALL_TABLES = {
    "x86_64": SyscallTable(0xC000003E, (29, 68, 64, 319, 447), clone=56, unshare=272, clone3=435),
    "aarch64": SyscallTable(0xC00000B7, (194, 186, 190, 279, 447), clone=220, unshare=97, clone3=435),
}
LOAD, EQUALS, AT_LEAST, HAS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE = 0, 4  # where they stand in struct seccomp_data
FLAGS = 16  # the lower half of the first argument, on machines with the lower bytes first
OTHER_TABLE = 0x40000000  # from here on x86_64 numbers the same calls once more (x32)
NEW_USER = 0x10000000  # of the flags that clone and unshare take first
ALLOW, REFUSE, MISSING = 0x7FFF0000, 0x00050001, 0x00050026  # the latter two: the call fails with EPERM, with ENOSYS


def call_filter(advice: str) -> bytes:
    """Calls of another architecture's table are refused too: 64-bit code can make those of 32 bits.

    Raises:
        UserError: of this machine the numbers are not known.
    """
    machine = SYSCALL_TABLES.get(platform.machine())
    if machine is None:
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the sandbox for the answers to them is made for "
            f"{' and '.join(SYSCALL_TABLES)} alone, not for {platform.machine()}. Evaluate on another machine, {advice}"
        )
    # (code, how many lines to skip where it holds, where not, value)
    last = [
        (EQUALS, 1, 0, machine.clone),
        (EQUALS, 0, 2, machine.unshare),
        (LOAD, 0, 0, FLAGS),
        (HAS, 1, 0, NEW_USER),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
        # Its flags are out of a filter's sight, and the C library takes clone where there is no clone3.
        (RETURN, 0, 0, MISSING),
    ]
    missing = len(last) - 1
    checks = [(AT_LEAST, OTHER_TABLE, missing - 1), (EQUALS, machine.clone3, missing)]
    checks += [(EQUALS, number, missing - 1) for number in machine.refused]
    lines = [(LOAD, 0, 0, ARCHITECTURE), (EQUALS, 0, 1 + len(checks) + missing - 1, machine.architecture)]
    lines.append((LOAD, 0, 0, NUMBER))
    lines += [(check, len(checks) - 1 - at + place, 0, value) for at, (check, value, place) in enumerate(checks)]
    return b"".join(struct.pack("=HBBI", *line) for line in (*lines, *last))
