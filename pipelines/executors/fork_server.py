"""Worker processes as forks of one that has imported what they need; seen from this side.

A fresh interpreter imports torch in 1.7 seconds of a processor, and then has 155 MB for itself. A fork of one that has
imported it is there after 0.02 seconds and shares all but 7 MB. The fork server is such an interpreter with nothing of
the user's in it: no module, no thread of Python's but the one that forks, no lock held. It begins with the first worker
process and is ended with the last. What runs in it: `fork_server_process.py`; Android's zygote and Python's own
`multiprocessing.forkserver` are the models, but the latter is one for all code of a process and outlives its forks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from intune.pipelines.executors.channel import receive_some
from intune.pipelines.executors.interpreter import start
from intune.pipelines.executors.messages import Born, Ended, Fork

LIBRARIES = ("torch", "pandas", "scipy")
"""Imported in the server once a worker process was seen to have them, for all that are begun later: large, and seen to
start no thread while they are imported."""

LARGEST_REPLY = 4096
LOOK_S = 0.05
"""How often whoever waits looks whether another thread has received what it waits for."""

TOLD_S = 1.0
"""Seconds within which the server tells how a process ended."""


def _is_available() -> bool:
    try:  # Python may know calls that the system lacks, or a sandbox refuses
        signal.pidfd_send_signal(own := os.pidfd_open(os.getpid()), 0)
    except (AttributeError, OSError):
        return False
    os.close(own)
    return hasattr(socket, "SOCK_SEQPACKET") and os.path.exists("/proc/self/fd")


available = _is_available()
"""Whether this system has what it takes: Linux does from 5.3 on."""


def _rights() -> tuple[object, ...]:
    """What a process may do, and what others may do with files that it makes: no process can be given those of another,
    so once they change here (a service that gives up being root) further ones are forks of another server."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        mask = [line for line in status if line.startswith("Umask:")]
    return os.getresuid(), os.getresgid(), os.getgroups(), mask


class Child:
    """A process that was asked for; it may not be there yet. For any thread.

    Attributes:
        number: by which its server tells of it.
        code: as `subprocess.Popen.returncode`; None as long as it runs, and where nobody can tell any more.
        refused: why the system allows no further process.
        problem: why it is not there, and never will be: for that reason or another.
    """

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        self._server = server
        self._descriptor = -1
        self._pid = 0
        self._unwanted = False
        self.code: int | None = None
        self.refused = self.problem = ""

    @property
    def pid(self) -> int | None:
        """None before it is there."""
        if not self._pid:
            self._server.listen(0.0)
        return self._pid or None

    @property
    def running(self) -> bool:
        """Whether it has not ended; also as long as it is not there."""
        self._server.listen(0.0)
        return not self._over(0.0)

    def arrived(self) -> None:
        """It has said something, so its number will be heard of."""
        self._server.listen_until(lambda: self._pid != 0, TOLD_S)

    def kill(self) -> None:
        """End it at once."""
        self._unwanted = True
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def wait(self, patience: float) -> bool:
        """Whether it has ended within so many seconds. One that was killed before it was there is not waited for: it
        ends as soon as it finds that whoever wanted it has hung up."""
        deadline = time.monotonic() + patience
        self._server.listen_until(self._known, 0.0 if self._unwanted else patience)
        if self._unwanted and not self._known():
            self.problem = "was ended before it was there"
        if self._unwanted:
            self.kill()
        if self.problem:
            return True
        if not self._over(max(0.0, deadline - time.monotonic())):
            return False
        self._server.listen_until(lambda: self.code is not None, TOLD_S)
        return True

    def found(self, libraries: Iterable[str]) -> None:
        """Have those that are begun later share what it had to import."""
        self._server.libraries.update(libraries)

    def release(self) -> None:
        """It is of no interest any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._server.release(self)

    # ---- for the server ------------------------------------------------------------------------------------------

    def born(self, reply: Born, descriptors: list[int]) -> None:
        """It is there, or never will be."""
        self._pid, self.refused = reply.pid, reply.refused
        if self.refused:
            self.problem = f"could not be started ({self.refused})"
        self._descriptor = descriptors[0] if descriptors else -1

    def _known(self) -> bool:
        return self._pid != 0 or self.problem != ""

    def _over(self, timeout: float) -> bool:
        if self.problem or self._descriptor < 0:
            return bool(self.problem)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000.0))


class Server:
    """The fork server's process. Messages are datagrams, so that two threads, or what the garbage collector does in the
    middle of one, never take parts of each other's."""

    def __init__(self) -> None:
        with ExitStack() as if_it_fails, ExitStack() as theirs:
            ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if_it_fails.callback(ours.close)
            theirs.callback(end.close)
            read, self._lifeline = os.pipe()
            if_it_fails.callback(os.close, self._lifeline)
            theirs.callback(os.close, read)
            self._process = start("fork_server_process", [end.fileno(), read])
            if_it_fails.pop_all()
        self.pid = self._process.pid
        self.rights = _rights()
        self.libraries: set[str] = set()
        self._socket = ours
        self._children: dict[int, Child] = {}
        self._begun = 0
        self.lost = False

    def fork(self, end: int) -> Child:
        """Ask for a process that is talked to at the other end of this descriptor's.

        Raises:
            OSError: the server is gone.
        """
        self._begun += 1
        child = self._children[self._begun] = Child(self, self._begun)
        try:
            message = pickle.dumps(Fork(child.number, sorted(self.libraries)))
            socket.send_fds(self._socket, [message], [end])
        except OSError:
            self.lost = True
            del self._children[child.number]
            raise
        return child

    def listen(self, timeout: float) -> None:
        """Take what the server has told within so many seconds."""
        poll = select.poll()
        if not self.lost:
            with contextlib.suppress(ValueError):  # it is being ended
                poll.register(self._socket, select.POLLIN)
        while not self.lost and poll.poll(timeout * 1000.0):
            timeout = 0.0
            try:
                message, descriptors = receive_some(self._socket, LARGEST_REPLY, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:  # another thread took it
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._lose()
                return
            self._heed(pickle.loads(message), descriptors)

    def listen_until(self, known: Callable[[], bool], timeout: float) -> None:
        """Listen until something is known, or so many seconds have passed, or nothing more will be told."""
        deadline = time.monotonic() + timeout
        self.listen(0.0)
        while not (known() or self.lost or (left := deadline - time.monotonic()) <= 0.0):
            self.listen(min(left, LOOK_S))

    def release(self, child: Child) -> None:
        """One process less; with the last one the server ends."""
        with _lock:
            self._children.pop(child.number, None)
            if not self._children:
                self._end()

    def forget(self) -> None:
        """In a fork of this process: leave it to the one that began it."""
        self._process.returncode = 0
        self._hang_up()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _heed(self, reply: Born | Ended, descriptors: list[int]) -> None:
        child = self._children.get(reply.number)
        if child is None:
            for descriptor in descriptors:
                os.close(descriptor)
        elif isinstance(reply, Born):
            child.born(reply, descriptors)
        else:
            child.code = reply.code

    def _lose(self) -> None:
        """It was killed, perhaps for memory. Its forks go on."""
        self.lost = True
        for child in list(self._children.values()):
            if not child._pid:
                child.problem = "could not be started: the process that starts them was ended"

    def _end(self) -> None:
        global _server
        if _server is self:
            _server = None
        self._hang_up()
        self._process.kill()  # there is nothing that it would have to put in order
        self._process.wait()

    def _hang_up(self) -> None:
        self.lost = True
        self._socket.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


_server: Server | None = None
_lock = (
    threading.RLock()
)  # reentrant since a loader may be closed by the garbage collector, in the middle of anything


def fork(end: int, libraries: Iterable[str] = ()) -> Child:
    """A new process.

    Args:
        end: what the process is to be talked to by.
        libraries: modules that it needs.

    Raises:
        OSError: it could not be started.
    """
    global _server
    with _lock:
        if _server is not None and not _server.lost and _server.rights == _rights():
            _server.libraries.update(libraries)
            with contextlib.suppress(OSError):  # it was killed, and nobody has noticed yet
                return _server.fork(end)
        _server = Server()
        _server.libraries.update(libraries)
        return _server.fork(end)


def server_pids() -> list[int]:
    """The server, if there is one: what it shares with its forks counts in part as its own."""
    server = _server
    return [] if server is None else [server.pid]


def _forget() -> None:
    global _server, _lock
    _lock = threading.RLock()
    if _server is not None:
        _server.forget()
        _server = None


os.register_at_fork(after_in_child=_forget)
