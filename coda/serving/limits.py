"""How much the server takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of memory and of waiting.

    Args:
        max_batch_size: Rows decoded at once.
        max_wait_ms: How long the first row of a batch waits for others to join it.
        max_queue: Rows that wait; what comes beyond is answered with 429.
        max_body_bytes: Size of a request.

    Raises:
        ValueError: For one below what makes sense.
    """

    max_batch_size: int = 16
    max_wait_ms: float = 10.0
    max_queue: int = 256
    max_body_bytes: int = 4_194_304

    def __post_init__(self) -> None:
        for name, least in (("max_batch_size", 1), ("max_wait_ms", 0), ("max_queue", 1), ("max_body_bytes", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
