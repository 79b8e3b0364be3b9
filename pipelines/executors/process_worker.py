"""A worker process: runs users' functions on blocks that its parent lays into shared memory.

A fork of the fork server, or started by `process.py` with two descriptors as arguments. It ends when its parent hangs
up, and is ended by the system when its parent dies, whatever it is doing then.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import cloudpickle

from intune.pipelines.allocators import give_back, keep_freed_memory
from intune.pipelines.errors import StageError
from intune.pipelines.executors import worker_number
from intune.pipelines.executors.channel import Channel
from intune.pipelines.executors.fork_server import LIBRARIES
from intune.pipelines.executors.messages import Call, Failed, Load, Loaded, Made
from intune.pipelines.executors.packing import pack, unpack
from intune.pipelines.executors.segments import Segment
from intune.pipelines.executors.surroundings import surround
from intune.pipelines.idle import Rest
from intune.pipelines.schema import Array

if TYPE_CHECKING:  # it brings much along that a worker has no use for
    from intune.pipelines.stages import MapFunction


class Server:
    """Answers the parent's requests, one at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._functions: dict[str, MapFunction] = {}
        self._segments: dict[int, Segment] = {}
        self._untold = set(LIBRARIES)

    def serve(self) -> None:
        """Until the parent hangs up."""
        rest = Rest()
        while True:
            try:
                while not self._channel.waits(rest.patience):
                    rest.pause()
                rest.work()
                request, descriptors = self._channel.receive()
                self._channel.send(self._answer(request, descriptors))
            except EOFError:
                return
            # A block, or an exception with the frames that hold one, must not outlive the answer.
            del request, descriptors

    def _answer(self, request: Load | Call, descriptors: list[int]) -> Loaded | Made | Failed:
        began = time.process_time()
        if isinstance(request, Load):
            try:
                self._functions[request.stage] = pickle.loads(request.function)
            except BaseException as error:
                return describe(error)
            finally:
                # It may come with a table of gigabytes, as large as which no block is that would use the memory again.
                request.function = b""
                give_back()
            return Loaded()
        for name, descriptor in zip(request.new, descriptors, strict=True):
            self._segments[name] = Segment(descriptor)
        taken = self._segments[request.source]
        answer = self._call(request, taken.lend(request.packed.size))
        answer.kept = not taken.free
        if answer.kept:
            self._segments.pop(request.source).close()
        answer.cpu_s = time.process_time() - began
        return answer

    def _call(self, request: Call, memory: Array) -> Made | Failed:
        try:
            made = self._functions[request.stage](unpack(request.packed, memory))
            try:
                packed, lay = pack(made)
            except Exception as error:
                raise StageError(
                    f"what the function returned cannot leave its process ({type(error).__name__}: {error}); "
                    "return arrays, tensors or plain containers of them, or mend how its class is pickled"
                ) from error
            lay(self._segments[request.target].lend(packed.size))
        except BaseException as error:  # also sys.exit(), which ends the job as it does in a thread
            return describe(error)
        return Made(packed=packed, libraries=self._imported())

    def _imported(self) -> list[str]:
        new = [name for name in self._untold if name in sys.modules]
        self._untold -= set(new)
        return new


def describe(error: BaseException) -> Failed:
    """An exception, ready to travel: itself if it survives that, and in words."""
    trace = error.__traceback__
    error = error.with_traceback(
        trace.tb_next if trace is not None else None
    )  # without the frame that caught it
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        pickled = cloudpickle.dumps(error.with_traceback(None), protocol=5)
        pickle.loads(pickled)
    except (
        Exception
    ):  # it holds a lock, or its class cannot be made again from its arguments: the words remain
        pickled = None
    return Failed(error=pickled, kind=type(error).__name__, message=_text(error), trace=text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as other:  # the user's own `__str__`
        return f"(its text cannot be had: {type(other).__name__})"


def _end_with(lifeline: int) -> None:
    """Have the system end this process when the pipe's other end, held by the parent alone, goes.

    The kernel's signal needs no thread of ours, so it comes through code that holds Python's lock.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    signal.signal(signal.SIGIO, signal.SIG_DFL)


def main() -> None:
    """Run a worker over the descriptors given as arguments."""
    work(*begun())


def begun() -> tuple[int, int]:
    """In a process that was just started: the descriptors it was given, of what it is asked by and of its lifeline."""
    # Ctrl-C is for the trainer; it was blocked while this process started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    control, lifeline = (int(argument) for argument in sys.argv[1:3])
    sys.argv[1:] = []
    for descriptor in (control, lifeline):
        os.set_inheritable(descriptor, False)  # programs that users' code starts must not keep up the line
    return control, lifeline


def work(control: int, lifeline: int) -> None:
    """Do what is asked for, until the parent hangs up.

    Args:
        control: descriptor of the socket at which is asked.
        lifeline: of the pipe with whose other end the parent goes.
    """
    keep_freed_memory()
    channel = Channel(socket.socket(fileno=control))
    _end_with(lifeline)
    try:
        hello, places = channel.receive()
    except EOFError:
        return
    surround(hello, places)
    worker_number.become(hello.number)
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)  # what a function prints is seen while it runs, also if it is killed
    # A process that the user's function forks must not keep up the line to the parent.
    os.register_at_fork(after_in_child=channel.close)
    try:
        channel.send(Loaded())
    except EOFError:
        return
    Server(channel).serve()
    _leave()


def _leave() -> None:
    """End this process without taking the interpreter apart, for which it takes a second where torch is imported.

    What users' code may count on happens: its threads are waited for, its exit handlers run, its texts are written.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)
