"""Worker processes for users' functions that hold Python's lock: a thread hands its block over and waits.

A process is started when a call finds none idle, so there are at most as many as calls run at once. Starting may take
seconds: where others work already, the call does not wait for its own, but takes whichever is free first. Those that
whoever resizes the pool wants no more are ended, which frees their memory, but not at once, lest others have to be
started soon. They are as fresh interpreters, neither forks of this one, whose threads would be lost in the middle of
what they do, nor importers of the user's script: `fork_server.py`. What travels how: `packing.py`; what runs in them:
`process_worker.py`.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from intune.pipelines.budget import affine_cpus
from intune.pipelines.errors import ConfigError, LoaderError, StageError, WorkerLostError
from intune.pipelines.executors.fork_server import LIBRARIES
from intune.pipelines.executors.packing import by_value
from intune.pipelines.executors.process import Process, handed_over
from intune.pipelines.idle import PATIENCE
from intune.pipelines.operations import call_here, timed_out
from intune.pipelines.schema import Block
from intune.pipelines.stages import Map

logger = logging.getLogger("intune")

RETRIES = 3
"""How often a call is run again whose process died. Processes are killed for memory in rows, seldom more."""

SPARE_S = 5.0
"""Seconds without work after which a process is ended that is one too many: another one has to import the user's
modules and make its functions ready, and agents that try fewer slots often take that back within seconds."""

DYING_S = 5.0
"""Seconds that a process which hung up may take to end by itself: how it ended is what its user is told, and one that
an exception ends has yet to print it."""

REST_S = PATIENCE[0]
"""Seconds without work after which a process's memory may be given back, as a thread's."""


class ProcessPool:
    """Runs the functions of stages with ``workers="process"`` in processes, and others in the calling thread.

    Its `__call__` is a `CallMap`; any number of threads may call at once.

    Args:
        maps: the stages.
        libraries: what their functions are known to import.
        clock: seconds.

    Raises:
        ConfigError: a function cannot be sent to a process.
    """

    def __init__(
        self,
        maps: Sequence[Map],
        *,
        libraries: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._most: int | None = None
        self._functions = {stage.name: _pickled(stage) for stage in maps if stage.workers == "process"}
        self._libraries = [*libraries, *_mentioned(self._functions.values())]
        # Reentrant since a loader may be closed by the garbage collector, in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._idle: list[Process] = []  # those idle for longest first; the last is taken
        self._busy: set[Process] = set()
        self._starting: set[Process] = set()  # beside the calls, each in a thread of its own
        self._starters = 0
        self._waiting = 0
        self._failed_starts = 0
        self._closed = False
        self._used = threading.local()
        self.workers_lost = 0

    def __call__(self, stage: Map, block: Block, where: Callable[[], str] | None = None) -> dict[str, Any]:
        """Run a stage's function.

        Args:
            where: tells what is worked on, for a warning when it has to be done again.

        Raises:
            StageTimeout: it did not return in time; its process was ended.
            WorkerLostError: it took its process down more often than `RETRIES`.
            LoaderError: the pool was closed meanwhile.
            BaseException: what the function raised, the traceback as a note.
        """
        if stage.workers != "process":
            return call_here(stage, block)
        tries = 0
        while True:
            process = self._borrow(stage)
            try:
                reply = self._ask(process, stage, block)
            except EOFError:
                tries += 1
                self._mourn(process, tries, (lambda: f"stage {stage.name!r}") if where is None else where)
                continue
            except TimeoutError:
                self._give_up(process)
                raise timed_out(stage) from None
            except StageError:
                self._give_back(process)  # it never got the block
                raise
            except WorkerLostError as error:
                self._do_without(process, error)
                continue
            except BaseException:
                self._give_up(process)  # what it is doing is not known any more
                raise
            self._give_back(process)
            if isinstance(reply, BaseException):
                raise reply
            return reply

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that calls of the current thread took in processes, so far."""
        return float(getattr(self._used, "cpu_s", 0.0))

    def replace(self, stage: str, function: bytes, *, anew: bool = False) -> None:
        """Have another function for a stage from the next call on.

        Args:
            function: pickled.
            anew: make it again in every process also where it is the same: calls may have changed what it keeps.
        """
        with self._changed:
            if anew or self._functions.get(stage) != function:
                self._functions[stage] = function

    def resize(self, most: int) -> None:
        """From now on so many processes are enough; of the others, each is ended once it has had no work for
        `SPARE_S` seconds."""
        with self._changed:
            self._most = most
            spare = self._spare()
        _end(spare)

    @property
    def starting(self) -> bool:
        """Whether some are not ready for their first call yet."""
        with self._changed:
            return any(process.fresh for process in (*self._busy, *self._starting))

    def pids(self) -> list[int]:
        """The processes."""
        with self._changed:
            processes = (*self._idle, *self._busy, *self._starting)
            return [pid for process in processes if (pid := process.pid) is not None]

    def end_idle(self) -> None:
        """End the processes that do nothing; others begin when there is work."""
        with self._changed:
            idle, self._idle = self._idle, []
        _end(idle)

    def give_back_memory(self) -> None:
        """Of processes that have had no work for a while, give back the memory that is shared with them for their next
        calls: up to six blocks each. Of their own they give back what they keep by themselves."""
        with self._changed:
            since = self._clock() - REST_S
            resting = [process for process in self._idle if process.idle_since <= since]
        for process in resting:
            with self._changed:  # for each, lest calls wait for all
                if process in self._idle:
                    process.give_back_memory()

    def close(self, patience: float = 2.0) -> None:
        """End all processes: those idle or still starting at once, the others after `patience` seconds at most."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in (*self._busy, *self._starting):
                if process.fresh:
                    process.kill()
            self._changed.notify_all()
        deadline = time.monotonic() + patience
        for process in idle:
            process.hang_up()
        for process in idle:
            process.end(max(0.0, deadline - time.monotonic()))
        with self._changed:
            if not self._changed.wait_for(self._still, max(0.0, deadline - time.monotonic())):
                for process in (*self._busy, *self._starting):
                    process.kill()
                self._changed.wait_for(self._still, 1.0)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _ask(self, process: Process, stage: Map, block: Block) -> dict[str, Any] | BaseException:
        process.prepare(stage.name, self._functions[stage.name])
        reply, cpu_s = process.call(stage.name, block, stage.timeout)
        self._used.cpu_s = self.cpu_s + cpu_s
        return reply

    def _still(self) -> bool:
        return not (self._busy or self._starters)

    def _borrow(self, stage: Map) -> Process:
        """A process for a call: one that is idle, or a new one where none works; else whichever is free first."""
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._closed:
                        raise LoaderError("the loader was closed while this ran")
                    works = any(not process.fresh for process in self._busy)
                    if not self._idle and self._busy and (works or self._failed_starts):
                        self._start_beside(stage)
                        self._changed.wait()
                        continue
                    process = self._rested() if self._idle else self._new()
                    if process is not None:
                        self._busy.add(process)
                        process.handed_over = handed_over(self._count())
                        return process
            finally:
                self._waiting -= 1

    def _rested(self) -> Process | None:
        """The process that was idle last, if it lives."""
        process = self._idle.pop()
        if process.alive:
            return process
        # It died idle: nothing is lost but the process, so this is nobody's try.
        self.workers_lost += 1
        logger.warning(
            "an idle worker process (pid %s) %s; going on without it", process.pid, process.end(0.0)
        )
        return None

    def _new(self) -> Process | None:
        """A process that is begun; None where the system allows no more than those at work."""
        try:
            return Process(self._free_number(), self._libraries)
        except WorkerLostError as error:
            if not self._busy:
                raise
            self._go_on_with_fewer(error)
            return None

    def _start_beside(self, stage: Map) -> None:
        """Have a process started for a call that waits for one, in a thread of its own. Each may import
        for seconds; half of the processors stay for those that work."""
        if self._starters < min(self._waiting, max(1, affine_cpus() // 2)) and self._failed_starts < RETRIES:
            self._starters += 1
            thread = threading.Thread(
                target=self._start, args=(stage,), name="intune-process-starter", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system allows no more threads
                self._starters -= 1
                self._go_on_with_fewer(error)

    def _do_without(self, process: Process, error: WorkerLostError) -> None:
        """A process is of no use since the system lacks something: others may be, if it was but begun."""
        begun = process.fresh
        self._give_up(process)
        with self._changed:
            if not (begun and self._busy):
                raise error
            self._go_on_with_fewer(error)

    def _go_on_with_fewer(self, error: Exception) -> None:
        self._failed_starts += 1
        logger.warning("a further worker process did not start (%s); going on with fewer", error)

    def _start(self, stage: Map) -> None:
        process: Process | None = None
        ready = False
        try:
            with self._changed:
                if self._closed:
                    return
                process = Process(self._free_number(), self._libraries)
                self._starting.add(process)
            process.prepare(stage.name, self._functions[stage.name])
            ready = True
        except (EOFError, WorkerLostError, StageError) as error:
            if not self._closed:
                self._go_on_with_fewer(error)
        finally:
            with self._changed:
                kept = ready and not self._closed
                if process is not None and kept:
                    self._rest(process)
            if process is not None and not kept:
                process.hang_up()
                process.end(1.0 if ready else 0.0)
            with self._changed:
                self._starters -= 1
                if process is not None:
                    self._starting.discard(process)
                self._changed.notify_all()

    def _free_number(self) -> int:
        taken = {process.number for process in (*self._idle, *self._busy, *self._starting)}
        return next(number for number in itertools.count() if number not in taken)

    def _count(self) -> int:
        return len(self._idle) + len(self._busy) + len(self._starting)

    def _rest(self, process: Process) -> None:
        process.idle_since = self._clock()
        self._idle.append(process)

    def _spare(self) -> list[Process]:
        """Idle processes that are to be ended, and idle no more."""
        if self._most is None:
            return []
        beyond = self._count() - self._most
        since = self._clock() - SPARE_S
        spare = [process for process in self._idle[: max(0, beyond)] if process.idle_since <= since]
        del self._idle[: len(spare)]
        return spare

    def _give_back(self, process: Process) -> None:
        with self._changed:
            self._busy.discard(process)
            spare = [process]
            if not self._closed:
                self._rest(process)
                spare = self._spare()
            self._changed.notify_all()
        _end(spare)

    def _give_up(self, process: Process, patience: float = 0.0) -> str:
        """End a process, by itself within `patience` seconds; says how it ended."""
        process.hang_up()
        ending = process.end(patience)
        with self._changed:
            self._busy.discard(process)
            self._changed.notify_all()
        return ending

    def _mourn(self, process: Process, tries: int, where: Callable[[], str]) -> None:
        """A process died at work: say so, or give up."""
        ending = self._give_up(process, DYING_S)
        with self._changed:
            if self._closed:
                raise LoaderError("the loader was closed while this ran")
            self.workers_lost += 1
        if tries > RETRIES:
            raise WorkerLostError(
                f"the function took its worker process down {tries} times; the last one {ending}. "
                "Mend the function, or leave it more memory"
            )
        logger.warning(
            "%s: its worker process (pid %s) %s; running the function again in a new one (try %d of %d)",
            where(), process.pid, ending, tries + 1, RETRIES + 1,
        )  # fmt: skip


def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        process.hang_up()
    for process in processes:
        process.end(1.0)


def process_pool(maps: Sequence[Map]) -> ProcessPool | None:
    """A pool where one is needed."""
    return ProcessPool(maps) if any(stage.workers == "process" for stage in maps) else None


def _mentioned(functions: Iterable[bytes]) -> list[str]:
    """Large libraries that functions name, of those that this process has. One that they do not name, since a module of
    the user's imports it, is known once the first process has it."""
    # The name stands first in the pattern since it is then looked for at once, and not asked at every byte what stands
    # before it: a function may hold a table of hundreds of megabytes.
    return [
        name
        for name in LIBRARIES
        if name in sys.modules
        and any(re.search(rb"%b(?<!\w%b)(?!\w)" % (name.encode(), name.encode()), each) for each in functions)
    ]


def _pickled(stage: Map) -> bytes:
    try:
        return by_value(stage.function, shared=True)
    except Exception as error:  # pickling runs the code of whatever the function refers to
        raise ConfigError(
            f"`function` of stage {stage.name!r} cannot be sent to a process ({type(error).__name__}: {error}); "
            "keep locks, open files and connections out of it, or use workers='thread'"
        ) from error
