"""A seccomp filter: no new processes, no sockets, no other process's memory, no signals to others.

It needs no privilege and no namespace, so it holds where those are missing; beside them it is a second fence and keeps
a candidate away from the kernel's riskier corners. Threads stay possible. Numbers: the kernel's syscall tables.
"""

import ctypes
import errno
import os
import struct

from .linux import LIBC, PR_SET_SECCOMP, checked
from .syscalls import BEYOND, DENIED, SPECIAL, numbers

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are little-endian
CLONE_THREAD = 0x10000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

Instruction = tuple[int, int, int, int]


def program(machine: str, process: int, walled: bool) -> list[Instruction]:
    """The filter for the process with id ``process``: BPF instructions (code, jump if true, jump if false, operand)."""
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    code: list[Instruction] = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, AUDIT[machine]), refuse, (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, 0x40000000), refuse]  # the x32 calls, numbered anew
    denied = {**numbers(DENIED, machine), **({} if walled else numbers(BEYOND, machine))}
    for number in denied.values():
        code += [(EQUAL, 0, 1, number), refuse]
    special = numbers(SPECIAL, machine)
    code += [(EQUAL, 0, 1, special.pop("clone3")), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]  # libc then uses clone, whose
    code += [(EQUAL, 0, 3, special.pop("clone")), (LOAD, 0, 0, FIRST_ARGUMENT)]  # flags do not lie in memory
    code += [(ANY_BIT, 1, 0, CLONE_THREAD), refuse, (LOAD, 0, 0, NUMBER)]
    code += [(EQUAL, 0, 4, special.pop("prlimit64")), (LOAD, 0, 0, FIRST_ARGUMENT)]
    code += [(EQUAL, 2, 0, 0), (EQUAL, 1, 0, process), refuse, (LOAD, 0, 0, NUMBER)]  # 0 is oneself
    for number in special.values():
        code += [(EQUAL, 0, 3, number), (LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, process), refuse]
        code += [(LOAD, 0, 0, NUMBER)]
    return [*code, (RETURN, 0, 0, ALLOW)]


def restrict(walled: bool) -> None:
    """Install the filter for this process and its threads; raises `OSError` where it cannot be.

    ``walled``: whether namespaces keep the machine's files and processes out of sight; where not, more is refused.
    """
    machine = os.uname().machine
    if machine not in AUDIT:
        raise OSError(errno.ENOSYS, f"no seccomp filter is written for {machine}")
    instructions = program(machine, os.getpid(), walled)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code)))
    checked(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_ulong(ctypes.addressof(header)), 0, 0), "seccomp")
