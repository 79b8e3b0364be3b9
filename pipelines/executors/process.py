"""One worker process, seen from this side. How many there are and what happens when one dies: `processes.py`."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from intune.pipelines.errors import StageError, WorkerLostError
from intune.pipelines.executors import fork_server
from intune.pipelines.executors.channel import Channel
from intune.pipelines.executors.fork_server import Child
from intune.pipelines.executors.interpreter import start
from intune.pipelines.executors.messages import Call, Failed, Load, Made
from intune.pipelines.executors.packing import Packed, pack, unpack, unpickle
from intune.pipelines.executors.segments import Segment
from intune.pipelines.executors.surroundings import hello, places
from intune.pipelines.operations import LOOKS
from intune.pipelines.schema import Array, Block

HANDED_OVER = 4
"""Results of one process that may be in use as they are, in its segments; more are copied out, since a segment
costs two file descriptors. Where there are many processes, fewer may (see `handed_over`). Of 2.2 MB, taking a segment
over takes 0.02 ms, copying out 0.17 ms and having a new segment each time 1 ms, so the few are used again and again."""

LAST_S = 5.0
"""Seconds for a process that was killed to be gone; one that the system holds up is not waited for any longer."""

LEAST_DESCRIPTORS = 6
"""That a process takes here: two for itself and for what it is talked to by, and two each for a segment with what it is
given and one with what it makes."""


def handed_over(processes: int) -> int:
    """Results of each of so many processes that may be in use as they are, if all are to take a quarter of the
    descriptors that this process may have, or as few as they can. (By default it may have 1,024, for several loaders
    perhaps. A trainer that does something else for a while lets results wait, and needs one for its checkpoint.)"""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return HANDED_OVER
    each = allowed // 4 // processes
    return max(0, min(HANDED_OVER, (each - LEAST_DESCRIPTORS) // 2))


class Process:
    """A process that runs functions on blocks. Every method is for one thread at a time, but `kill`.

    Args:
        number: by which it knows itself among its like; see `worker_number.py`.
        libraries: what its functions are known to import.

    Attributes:
        idle_since: when it was last given back, by the clock of who lends it.
        handed_over: how many of its results may be in use as they are.

    Raises:
        WorkerLostError: it could not be started.
    """

    def __init__(self, number: int = 0, libraries: Sequence[str] = ()) -> None:
        self.number = number
        self.idle_since = 0.0
        self.handed_over = HANDED_OVER
        self._greeted = False
        self._prepared: dict[str, bytes] = {}
        self._segments: dict[int, Segment] = {}
        self._source = -1
        self._targets: list[int] = []
        self._next_number = 0
        with _no_fork:
            try:
                self._process, ours = _started(libraries)
            except OSError as error:
                raise _not_started(error) from error
            self._channel = Channel(ours)
            _processes.add(self)

    @property
    def pid(self) -> int | None:
        """None before it is there."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.running

    @property
    def fresh(self) -> bool:
        """Whether it is still starting, or importing what its first function needs."""
        return not self._prepared

    def prepare(self, stage: str, function: bytes) -> None:
        """Have a function ready there; in place of the stage's former one if that was another.

        Raises:
            EOFError: the process died.
            WorkerLostError: it could not be started.
            StageError: the function cannot be had there; its module is not found, for one.
        """
        if not self._greeted:
            self._greet()
        if self._prepared.get(stage) is function:
            return
        self._channel.send(Load(stage, function))
        reply, _ = self._channel.receive()
        if isinstance(reply, Failed):
            raise _in_words(reply, "the function could not be made ready in a worker process:")
        self._prepared[stage] = function

    def call(
        self, stage: str, block: Block, timeout: float | None
    ) -> tuple[dict[str, Any] | BaseException, float]:
        """Run a function.

        Returns:
            What it returned or the exception it raised, and the seconds of processor time it took there.

        Raises:
            StageError: the block cannot travel.
            EOFError: the process died.
            TimeoutError: it did not answer within `timeout` seconds; it is of no use any more.
            WorkerLostError: the system gives no memory to share with it.
        """
        try:
            packed, lay = pack(block)
        except Exception as error:  # a stage before may have put anything into it
            raise StageError(
                f"the block cannot be sent to a process ({type(error).__name__}: {error}); hand on columns only"
            ) from error
        new: list[int] = []
        if self._source not in self._segments:
            self._source = self._add_segment(new)
        target = self._free_target(new)
        lay(self._lend(self._source, packed.size))
        self._channel.send(
            Call(stage=stage, packed=packed, source=self._source, target=target, new=new),
            [self._segments[number].descriptor for number in new],
        )
        if timeout is not None:
            self._wait(timeout)
        reply, _ = self._channel.receive()
        if reply.kept:
            self._segments.pop(self._source).close()
        if isinstance(reply, Failed):
            return _raised(reply), reply.cpu_s
        if reply.libraries:
            self._process.found(reply.libraries)
        return self._take(reply, target), reply.cpu_s

    def give_back_memory(self) -> None:
        """Between two calls: give back the memory shared with it that nobody uses."""
        for segment in self._segments.values():
            segment.give_back_memory()

    def hang_up(self) -> None:
        """Let it end by itself."""
        self._channel.close()

    def kill(self) -> None:
        """End it at once; whoever waits for its answer sees that it died."""
        self._process.kill()

    def end(self, patience: float) -> str:
        """Wait for its end, `patience` seconds at most, then kill it; says how it ended."""
        lives_on = False
        if not self._process.wait(patience):
            self._process.kill()
            # It may still have been dying by itself; how it ended tells.
            lives_on = self._process.wait(LAST_S) and self._process.code == -signal.SIGKILL
        self._release()
        if lives_on:
            return "hung up but went on, and was ended (does the function close descriptors that it did not open?)"
        return self._process.problem or _ending(self._process.code)

    def forget(self) -> None:
        """In a fork of this process: leave it to the one that started it."""
        if isinstance(self._process, _Fresh):
            self._process.forget()
        self._release()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        try:
            with places() as descriptors:
                self._channel.send(hello(self.number), descriptors)
            self._channel.receive()
        except OSError as error:
            raise _not_shared(error) from error
        except EOFError:
            if not self.alive and self._process.refused:
                raise _not_started(self._process.refused) from None
            raise
        self._process.arrived()
        self._greeted = True

    def _release(self) -> None:
        _processes.discard(self)
        self._channel.close()
        self._process.release()
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _wait(self, timeout: float) -> None:
        """Wait for an answer."""
        # In parts, so that a time for which the job as a whole stands still (stopped, or its control group frozen),
        # the function with it, counts as one of them.
        for _ in range(LOOKS):
            if self._channel.waits(timeout / LOOKS):
                return
        raise TimeoutError

    def _add_segment(self, new: list[int]) -> int:
        number = self._next_number
        self._next_number += 1
        try:
            self._segments[number] = Segment.create()
        except OSError as error:
            raise _not_shared(error) from error
        new.append(number)
        return number

    def _lend(self, number: int, size: int) -> Array:
        try:
            return self._segments[number].lend(size)
        except (OSError, MemoryError) as error:  # mapping it takes a descriptor, too
            raise _not_shared(error) from error

    def _free_target(self, new: list[int]) -> int:
        for number in self._targets:
            if self._segments[number].free:
                return number
        self._targets.append(self._add_segment(new))
        return self._targets[-1]

    def _take(self, reply: Made, target: int) -> dict[str, Any] | BaseException:
        used = sum(not self._segments[number].free for number in self._targets)
        memory = self._lend(target, reply.packed.size)
        return _unpacked(reply.packed, memory, apart=used >= self.handed_over)


def _not_started(reason: object) -> WorkerLostError:
    return WorkerLostError(
        f"a worker process could not be started: {reason}; allow more processes and open files (ulimit -u, ulimit -n; "
        "in a container its limit of pids), or give the stage fewer slots"
    )


def _not_shared(error: Exception) -> WorkerLostError:
    return WorkerLostError(
        f"no memory can be shared with a worker process ({error}); allow more open files (ulimit -n), address space "
        "(-v) or size of a file (-f), or give the stage fewer slots"
    )


def _unpacked(packed: Packed, memory: Array, apart: bool) -> dict[str, Any] | BaseException:
    try:
        made: dict[str, Any] = unpack(packed, memory, own_classes=True, apart=apart)
    except Exception as error:  # classes of the user's may do anything when they are made again
        return StageError(
            f"what the function returned cannot be made again in this process "
            f"({type(error).__name__}: {error}); return arrays, tensors or plain containers of them, or mend how its "
            "class is pickled"
        )
    return made


_processes: weakref.WeakSet[Process] = weakref.WeakSet()

_no_fork = threading.RLock()
"""Held while a process starts: a fork by another thread waits for it, else its child would hold the ends of a line that
it does not know of, and keep that process alive when this one is killed."""


def _forget_all() -> None:
    _no_fork.release()
    for process in list(_processes):
        process.forget()


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_forget_all)


class _Fresh:
    """A worker process where this system has no fork server; as `fork_server.Child`."""

    refused = problem = ""

    def __init__(self, end: int) -> None:
        read, self._lifeline = os.pipe()
        try:
            self._process = start("process_worker", [end, read])
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read)
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.returncode

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def arrived(self) -> None:
        pass

    def kill(self) -> None:
        self._process.kill()

    def wait(self, patience: float) -> bool:
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def found(self, libraries: Sequence[str]) -> None:
        pass

    def release(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def forget(self) -> None:
        self._process.returncode = 0  # it is no child of the fork, which must not wait for it


def _started(libraries: Sequence[str]) -> tuple[Child | _Fresh, socket.socket]:
    """A new process, and this end of the pair of sockets by which it is talked to."""
    ours, end = socket.socketpair()
    with end:
        try:
            if fork_server.available:
                return fork_server.fork(end.fileno(), libraries), ours
            return _Fresh(end.fileno()), ours
        except BaseException:
            ours.close()
            raise


def _ending(code: int | None) -> str:
    if code is None:
        return "ended, nobody knows how"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _raised(reply: Failed) -> BaseException:
    """What the function raised, or a `StageError` in its place."""
    if reply.error is not None:
        try:
            error = unpickle(reply.error)
        except Exception:  # its class is not to be had here, or cannot be made again: the words remain
            error = None
        if isinstance(error, BaseException):
            error.add_note(f"In the worker process:\n{reply.trace}")
            return error
    return _in_words(reply, "the function raised")


def _in_words(reply: Failed, what: str) -> StageError:
    error = StageError(f"{what} {reply.kind}: {reply.message}")
    error.__cause__ = StageError(reply.trace)
    return error
