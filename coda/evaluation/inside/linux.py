"""The few system calls that Python does not wrap, through ctypes; each raises `OSError` with the kernel's reason."""

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def checked(result: int, what: str) -> int:
    """``result``, or an `OSError` naming ``what`` where it is -1."""
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """System call ``number``; integers are passed as C longs, None as a null pointer."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(LIBC.syscall(ctypes.c_long(number), *longs), what)


def prctl(option: int, value: int = 0, what: str = "prctl") -> int:
    """``prctl(option, value)``."""
    return checked(LIBC.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3), what)


def unshare(flags: int) -> None:
    """Leave the namespaces of ``flags``."""
    checked(LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """``mount(2)``; the paths are in the caller's mount namespace."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    checked(LIBC.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def pivot_to(folder: str) -> None:
    """Make the mount at ``folder`` the root of this mount namespace and detach the old one."""
    os.chdir(folder)
    syscall("pivot_root", PIVOT_ROOT[os.uname().machine], b".", b".")
    checked(LIBC.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability, and the means to gain one by running another program."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    capability = 0
    while LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")
