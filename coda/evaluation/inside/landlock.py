"""Landlock: the kernel's own limit on files, TCP and signals, for a process without any privilege (Linux 5.13).

Rules and bits: https://docs.kernel.org/userspace-api/landlock.html. Later kernels know more kinds of access; each is
handled, and so refused, where the kernel has it.
"""

import ctypes
import os

from .linux import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
READ = 1 << 2 | 1 << 3  # files and folders
FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # what a rule on a file, not a folder, may name
WRITE = READ | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 14  # no devices, no sockets
ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access to files each version handles


def version() -> int:
    """The version of Landlock that this kernel has; raises `OSError` where there is none or it is off."""
    return syscall("landlock", CREATE_RULESET, None, 0, 1)


def restrict(readable: list[str], writable: list[str]) -> None:
    """From now on this process and its children read only ``readable`` and ``writable``, and write only the latter.

    Paths that do not exist are left out. TCP (version 4), and signals and abstract sockets to processes outside
    (version 6), are refused as well.
    """
    known = version()
    handled = (1 << ACCESS_BITS.get(known, 16)) - 1
    attributes = [handled, 3 if known >= 4 else 0, 3 if known >= 6 else 0]
    size = 8 * (3 if known >= 6 else 2 if known >= 4 else 1)
    ruleset = syscall("landlock_create_ruleset", CREATE_RULESET, (ctypes.c_uint64 * 3)(*attributes), size, 0)
    for paths, access in ((readable, READ), (writable, WRITE)):
        for path in paths:
            allow(ruleset, path, access & handled)
    syscall("landlock_restrict_self", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def allow(ruleset: int, path: str, access: int) -> None:
    """Add the rule that ``access`` is fine at and below ``path``."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        access &= FILE_ONLY
    rule = access.to_bytes(8, "little") + opened.to_bytes(4, "little", signed=True)  # a packed struct
    syscall("landlock_add_rule", ADD_RULE, ruleset, 1, rule, 0)
    os.close(opened)
