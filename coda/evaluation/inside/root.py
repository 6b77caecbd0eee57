"""A root folder of one's own: the libraries to read, 16 MB to write in memory, and nothing else of the machine."""

import os

from . import linux
from .linux import CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS

NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
SCRATCH = "/candidate"  # its working folder; a name that no library lies under
BASE = "/proc"  # where the new root is put together: it exists everywhere and holds nothing that is mounted into it
STICKY_FLAGS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME


def leave_namespaces() -> None:
    """New mount, process, network, IPC, host-name and cgroup namespaces; a user namespace too where root has no say.

    The process itself stays in its process namespace: its next child is the first of the new one.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        if user != 0:
            raise PermissionError
        linux.unshare(NAMESPACES)
    except OSError:
        linux.unshare(NAMESPACES | CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def build_root(readable: list[str], size: str = "16m") -> None:
    """Move into a new root with ``readable`` mounted read-only at their own paths and `SCRATCH` to write in."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size={size},nr_inodes=4096,mode=755")
    for path in sorted(readable):
        if os.path.exists(path):
            bind(path, linux.MS_NOSUID | linux.MS_NODEV)
    for path in DEVICES:
        bind(path, linux.MS_NOSUID | linux.MS_NOEXEC)
    os.makedirs(BASE + SCRATCH, exist_ok=True)
    os.chmod(BASE + SCRATCH, 0o777)
    linux.pivot_to(BASE)


def bind(path: str, flags: int) -> None:
    """Show ``path`` read-only at the same path of the new root."""
    target = BASE + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    linux.mount(path, target, None, linux.MS_BIND | linux.MS_REC)
    kept = os.statvfs(target).f_flag & STICKY_FLAGS  # a user namespace may add to these flags, never clear them
    linux.mount("none", target, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags | kept)
