"""What one process may use: rlimits, which only ever go down."""

import resource

MIB = 1 << 20


def restrict(limits: dict[str, int]) -> None:
    """Set each limit, named as in `resource` without ``RLIMIT_``, or to the present hard limit where that is lower."""
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (lowest, lowest))


def defaults(memory: int, seconds: int) -> dict[str, int]:
    """The limits of a candidate: ``memory`` bytes of address space and ``seconds`` of CPU.

    Numpy's import alone wants some gigabytes of address space where it starts threads.
    """
    return {
        "CORE": 0,
        "AS": memory,
        "CPU": seconds,
        "FSIZE": 16 * MIB,
        "NOFILE": 64,
        "NPROC": 64,
        "STACK": 64 * MIB,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }
