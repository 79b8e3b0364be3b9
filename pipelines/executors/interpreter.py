"""Fresh interpreters in which programs of ours run: the fork server, or worker processes where there is none."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from intune.pipelines.executors.import_path import import_path
from intune.pipelines.executors.surroundings import OWN

_CODE = """
import sys
count = 2 + int(sys.argv[1])
sys.path[:], sys.argv[:] = sys.argv[count:], ["-c", *sys.argv[2:count]]
from intune.pipelines.executors.{program} import main
main()
"""


def start(program: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """A fresh interpreter in which a program of ours runs, with these descriptors as its arguments."""
    # -O, -W, -X utf8, -E and so on, as multiprocessing has them: a function is to find the same there as here.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    with ExitStack() as passed:
        numbers = []
        for descriptor in descriptors:
            # Where this process has a standard stream closed, it may be that one's number.
            numbers.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3))
            passed.callback(os.close, numbers[-1])
        # -P: a folder that happens to be the current one is no place to import from, unless it is one here too.
        # Modules are found where this process finds them, but not before the interpreter has those that it starts with:
        # a script's folder may hold a types.py.
        command = [sys.executable, *flags, "-P", "-c", _CODE.format(program=program)]
        with _interrupt_blocked():
            return subprocess.Popen(
                [*command, str(len(numbers)), *map(str, numbers), *import_path()],
                stdin=subprocess.DEVNULL,
                stdout=None if sys.__stdout__ is not None else subprocess.DEVNULL,
                stderr=None if sys.__stderr__ is not None else subprocess.DEVNULL,
                env={**OWN, **os.environ},
                pass_fds=numbers,
            )


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """What is started meanwhile starts with Ctrl-C blocked; it is for the trainer to act on it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
