"""The fork server: a process that imports what worker processes need, and forks them. Asked by `fork_server.py`.

It runs nothing of the user's, so that each worker process begins as a fresh interpreter does but for what is imported
already, and it ends when its parent hangs up or dies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import warnings
from typing import Any

from intune.pipelines.executors import process_worker
from intune.pipelines.executors.channel import receive_some
from intune.pipelines.executors.messages import Born, Ended, Fork

LARGEST_REQUEST = 4096


class Server:
    """Answers its parent, one request at a time.

    Attributes:
        asked: what it is asked by; each message is a datagram.
        lifeline: descriptor of the pipe with whose other end the parent goes.
    """

    def __init__(self, asked: socket.socket, lifeline: int) -> None:
        self.asked = asked
        self.lifeline = lifeline
        self._children: dict[int, tuple[int, int]] = {}  # by their descriptors: the number and the process's

    def serve(self) -> int | None:
        """Until the parent hangs up. In every fork, return what it is to be talked to by."""
        poll = select.poll()
        poll.register(self.asked, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor in self._children:
                    poll.unregister(descriptor)
                    self._tell_end(descriptor)
                    continue
                try:
                    message, passed = receive_some(self.asked, LARGEST_REQUEST)
                except OSError:
                    return None
                if not message:
                    return None
                request: Fork = pickle.loads(message)
                self._import(request.libraries)
                try:
                    pid = _fork()
                except OSError as error:
                    self._tell(Born(request.number, refused=str(error)))
                else:
                    if pid == 0:
                        self._leave()
                        return passed[0]
                    child = os.pidfd_open(pid)
                    self._children[child] = request.number, pid
                    poll.register(child, select.POLLIN)
                    self._tell(Born(request.number, pid), child)
                for end in passed:
                    os.close(end)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _import(self, libraries: list[str]) -> None:
        new = [name for name in libraries if name not in sys.modules]
        for name in new:
            with contextlib.suppress(Exception):  # whoever needs it will say so
                importlib.import_module(name)
        if new:
            gc.collect()
            gc.freeze()  # what is never looked at again stays shared

    def _tell_end(self, descriptor: int) -> None:
        number, pid = self._children.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        self._tell(Ended(number, os.waitstatus_to_exitcode(status)))

    def _tell(self, reply: Born | Ended, *descriptors: int) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, as the next look tells
            socket.send_fds(self.asked, [pickle.dumps(reply)], descriptors)

    def _leave(self) -> None:
        """In a fork: be a process of its own."""
        self.asked.close()
        for descriptor in self._children:
            os.close(descriptor)
        self._children.clear()


def _fork() -> int:
    with warnings.catch_warnings():
        # Arrow's allocator has a thread of its own, of which it takes care.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _draw_anew()
    return pid


def _draw_anew() -> None:
    """Random numbers that a fresh interpreter would begin anew; Python's own are after every fork."""
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()


def main() -> None:
    """Run the server over the descriptors given as arguments, and in its forks their work."""
    asked, lifeline = process_worker.begun()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told how processes end
    end = Server(socket.socket(fileno=asked), lifeline).serve()
    if end is None:
        os._exit(0)
    process_worker.work(end, _own(lifeline))


def _own(lifeline: int) -> int:
    """The lifeline opened once more: the system tells one process of each that is open."""
    return os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
