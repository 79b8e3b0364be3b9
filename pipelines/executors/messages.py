"""What this process and a worker process say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from intune.pipelines.executors.packing import Packed


@dataclass(slots=True)
class Hello:
    """To a new process.

    Attributes:
        number: the process's own; see `worker_number.py`.
    """

    number: int = 0


@dataclass(slots=True)
class Load:
    """To a process: have a stage's function ready."""

    stage: str
    function: bytes


@dataclass(slots=True)
class Loaded:
    """From a process: ready for calls."""


@dataclass(slots=True)
class Call:
    """To a process: run a stage's function.

    Attributes:
        stage: whose function.
        packed: the block, laid into the segment `source`.
        source, target: numbers of the segments for the block and for what is made of it.
        new: numbers of the segments whose descriptors come with this message, in order.
    """

    stage: str
    packed: Packed
    source: int
    target: int
    new: list[int]


@dataclass(slots=True)
class Made:
    """From a process: what the function returned, laid into the segment asked for.

    Attributes:
        packed: the rest of it.
        cpu_s: seconds of processor time it took.
        kept: the function kept part of its input, whose segment is therefore its own from now on.
    """

    packed: Packed
    cpu_s: float = 0.0
    kept: bool = False


@dataclass(slots=True)
class Failed:
    """From a process: the function raised.

    Attributes:
        error: the pickled exception, None if it cannot travel.
        kind, message, trace: the exception in words.
        cpu_s, kept: as in `Made`.
    """

    error: bytes | None
    kind: str
    message: str
    trace: str
    cpu_s: float = 0.0
    kept: bool = False
