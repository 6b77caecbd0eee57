"""Messages on a pipe: four bytes of length, then that many bytes."""

import os
import struct

HEADER = struct.Struct("<I")
STEP = 1 << 20


def write_frame(pipe: int, data: bytes) -> None:
    """Write one message; blocks while the pipe is full."""
    rest = memoryview(HEADER.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(pipe, rest[:STEP]) :]


def read_frame(pipe: int, largest: int) -> bytes:
    """Read one message; `EOFError` where the writer is gone, `ValueError` where it has more than ``largest`` bytes."""
    (length,) = HEADER.unpack(_exactly(pipe, HEADER.size))
    if length > largest:
        raise ValueError(f"a message of {length} bytes: more than {largest}")
    return _exactly(pipe, length)


def _exactly(pipe: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(pipe, min(length, STEP))
        if not part:
            raise EOFError("the other side has gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
