"""What this process and a worker process say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from intune.pipelines.executors.packing import Packed


@dataclass(slots=True)
class Fork:
    """To the fork server: begin a process, which is talked to by the descriptor that comes with this.

    Attributes:
        number: by which the server tells of it.
        libraries: modules that it is to have.
    """

    number: int
    libraries: list[str]


@dataclass(slots=True)
class Born:
    """From the fork server: a process is there, and a descriptor of it comes with this; or why there may be none."""

    number: int
    pid: int = 0
    refused: str = ""


@dataclass(slots=True)
class Ended:
    """From the fork server: how a process ended, as `subprocess.Popen.returncode`."""

    number: int
    code: int


@dataclass(slots=True)
class Hello:
    """To a new process, with descriptors of the current folder and of what it prints to.

    Attributes:
        number: the process's own; see `worker_number.py`.
        path: where modules are found.
        arguments: of the script.
        environment: all variables.
        processors: those it may use; None where the system does not know.
        limits: of resources, as `resource.getrlimit` tells them.
    """

    number: int
    path: list[str]
    arguments: list[str]
    environment: dict[str, str]
    processors: set[int] | None
    limits: dict[int, tuple[int, int]]


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
        libraries: of those that others could share, what this process had imported since it last told.
    """

    packed: Packed
    cpu_s: float = 0.0
    kept: bool = False
    libraries: list[str] = field(default_factory=list)


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
