"""What a process started now would have of this one, for one that is a fork of a process started earlier."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator

from intune.pipelines.executors.import_path import import_path
from intune.pipelines.executors.messages import Hello

OWN = {"OMP_NUM_THREADS": "1"}
"""Variables that a worker process has where the user has none: one processor, as far as libraries heed it."""

_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def hello(number: int) -> Hello:
    """This process's surroundings, for a new one of that number."""
    return Hello(
        number=number,
        path=import_path(),
        arguments=sys.argv,
        environment={**OWN, **os.environ},
        processors=os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        limits={limit: resource.getrlimit(limit) for limit in _LIMITS},
    )


@contextlib.contextmanager
def places() -> Iterator[list[int]]:
    """Descriptors that go with it: of the current folder, unless that may not be looked at, of output and of errors.

    Raises:
        OSError: this process may have no more descriptors.
    """
    with contextlib.ExitStack() as opened:
        taken = []
        # A folder that may not be looked at was changed to with more rights, so that a new process starts in it, too.
        with contextlib.suppress(PermissionError):
            taken.append(os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC))
            opened.callback(os.close, taken[0])
        for number, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
            # Where a stream was closed when this process began, its number may have become anything else's.
            try:
                taken.append(os.dup(number if stream is not None else -1))
            except OSError:
                taken.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
            opened.callback(os.close, taken[-1])
        yield taken


def surround(hello: Hello, places: list[int]) -> None:
    """Have this process be surrounded by the same."""
    *folder, output, errors = places
    for descriptor in folder:
        os.fchdir(descriptor)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for descriptor in places:
        os.close(descriptor)
    if sys.path != hello.path:
        sys.path[:] = hello.path
    sys.argv[:] = hello.arguments
    if os.environ != hello.environment:
        os.environ.clear()
        os.environ.update(hello.environment)
    if hello.processors is not None and os.sched_getaffinity(0) != hello.processors:
        with contextlib.suppress(OSError):  # its control group has others
            os.sched_setaffinity(0, hello.processors)
    for limit, values in hello.limits.items():
        if resource.getrlimit(limit) != values:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(limit, values)
