"""The number by which a worker process knows itself among those of its pool: 0, 1, 2…

Users' code may go by it (which device, which port, which shard). The process that takes a dead one's place takes
its number too.
"""

from __future__ import annotations

_number: int | None = None


def worker_number() -> int | None:
    """This process's number; None where it is no worker process."""
    return _number


def become(number: int) -> None:
    """Have a number from now on; called once, when a worker process starts."""
    global _number
    _number = number
