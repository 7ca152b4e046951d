"""A filter of system calls for the sandbox (seccomp, Linux' Documentation/userspace-api/seccomp_filter.rst).

It refuses what the limits on processes do not count. This is memory that belongs to no process, and user namespaces, in
which code may mount folders in memory. The filter is a classic BPF program over `struct seccomp_data`, in the form that
`bwrap --seccomp` reads.
"""

import platform
import struct
from typing import NamedTuple

from stages.runtime.errors import UserError


class SyscallTable(NamedTuple):
    """Numbers from linux/audit.h and asm/unistd.h for one architecture."""

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
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
FLAGS = 16  # offset of the lower half of the first argument, on little-endian machines
OTHER_TABLE = 0x40000000  # x86_64 numbers the same calls again from here on (x32)
NEW_USER = 0x10000000  # CLONE_NEWUSER, a flag in the first argument of clone and unshare
ALLOW, REFUSE, MISSING = 0x7FFF0000, 0x00050001, 0x00050026  # REFUSE fails with EPERM, MISSING with ENOSYS


def call_filter(advice: str) -> bytes:
    """The filter for this machine. It also refuses calls of other architectures, such as 32-bit calls from 64-bit code.

    Args:
        advice: What to do where there is no filter, for the message.

    Raises:
        UserError: The numbers of this machine's architecture are not known.
    """
    machine = SYSCALL_TABLES.get(platform.machine())
    if machine is None:
        raise UserError(
            "test rows bring tests (evaluate.run_tests), and the sandbox for the answers to them is made for "
            f"{' and '.join(SYSCALL_TABLES)} only, not for {platform.machine()}. Evaluate on another machine, {advice}"
        )
    # (code, lines to skip where it holds, lines to skip where not, value)
    last = [
        (EQUALS, 1, 0, machine.clone),
        (EQUALS, 0, 2, machine.unshare),
        (LOAD, 0, 0, FLAGS),
        (HAS, 1, 0, NEW_USER),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
        # clone3: a filter cannot see its flags. Without clone3 the C library takes clone.
        (RETURN, 0, 0, MISSING),
    ]
    missing = len(last) - 1
    checks = [(AT_LEAST, OTHER_TABLE, missing - 1), (EQUALS, machine.clone3, missing)]
    checks += [(EQUALS, number, missing - 1) for number in machine.refused]
    lines = [(LOAD, 0, 0, ARCHITECTURE), (EQUALS, 0, 1 + len(checks) + missing - 1, machine.architecture)]
    lines.append((LOAD, 0, 0, NUMBER))
    lines += [(check, len(checks) - 1 - at + place, 0, value) for at, (check, value, place) in enumerate(checks)]
    return b"".join(struct.pack("=HBBI", *line) for line in (*lines, *last))
