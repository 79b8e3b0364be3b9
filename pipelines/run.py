"""One epoch under way: what executors and the loader share under one lock.

Executors take tasks and report them; the loader takes outputs in order. Errors, skips and retries are settled
here, once for all executors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from intune.pipelines.errors import IntuneError, LoaderError, SkipLimitError, StageError, StorageError
from intune.pipelines.idle import LastFirst, Rest
from intune.pipelines.memory import roots
from intune.pipelines.operations import Job, Over, Result, cpu_seconds
from intune.pipelines.payloads import Missing, Piece
from intune.pipelines.plan import Plan
from intune.pipelines.reading.failures import retry_delay
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.tasks import Key, Task

logger = logging.getLogger("intune")

LONGEST_WAIT_S = 1.0
"""Seconds after which who waits for an output looks again whether the run is closed."""


class Work(Protocol):
    """What an epoch is about; a pipeline's is a `Job`."""

    @property
    def plan(self) -> Plan:
        """The epoch's tasks."""

    @property
    def skip(self) -> bool:
        """Whether what cannot be used is left out instead of ending the run."""

    def where(self, level: int, index: int) -> str:
        """What a task works on, for a person."""


class Runner(Protocol):
    """Does the tasks of an epoch; a pipeline's are `Operations`."""

    def run(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """Do a task on the outputs it takes, in order."""


class Run:
    """An epoch under way.

    Args:
        job: the epoch's work.
        scheduler: its state; touched only under `lock`.
        retries: how often a failed read is tried again.
        max_skipped: how many skips are tolerated in an epoch.
        skipped: files that were left out already; they count.
        on_skip: told of every skip (a sentence).
        clock: seconds, monotonic.
        measure: bytes of every buffer a payload keeps alive, for the ledger.
        deliver: makes of the last level's payload what the trainer gets.
    """

    def __init__(
        self,
        job: Work,
        scheduler: Scheduler,
        *,
        retries: int,
        max_skipped: int,
        skipped: int = 0,
        on_skip: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        measure: Callable[[Any], Mapping[Any, int]] = roots,
        deliver: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self._job = job
        self._over = job.over if isinstance(job, Job) else Over()
        self.scheduler = scheduler
        self.clock = clock
        self.began = clock()
        self.lock = threading.RLock()
        self.work = LastFirst(self.lock)
        self.output = threading.Condition(self.lock)
        self.payloads: dict[Key, Any] = {}
        self.error: BaseException | None = None
        self.closed = False
        self.on_free: Callable[[Sequence[Key]], None] | None = None
        self.skipped = skipped
        self.last_level = len(job.plan.levels) - 1
        self._retries = retries
        self._max_skipped = max_skipped
        self._taken = 0  # tasks so far
        self._booked: set[Key] = set()  # tasks whose skips are counted
        self._on_skip = on_skip
        self._measure = measure
        self._deliver = finalize if deliver is None else deliver

    @property
    def job(self) -> Job:
        """The epoch's work, of a pipeline."""
        assert isinstance(self._job, Job)
        return self._job

    # ---- for executors ---------------------------------------------------------------------------------------

    def take(self, rest: Rest | None = None) -> tuple[Task, list[Any]] | None:
        """The next task and its inputs, waiting until there is one; None once the run is over.

        Args:
            rest: of the thread that asks, what it does while there is none.
        """
        with self.lock:
            taken = self._taken
            while not self.closed and self.error is None:
                now = self.clock()
                task = self.scheduler.take(now)
                if task is not None:
                    self._taken += 1
                    self.work.notify()  # there may be more; the one woken wakes the next
                    if rest is not None:
                        rest.work()
                    return task, [self.payloads[key] for key in task.inputs]
                due = self.scheduler.next_due
                self._await_work(None if due is None else max(0.0, due - now), rest, taken)
            return None

    def execute(
        self,
        operations: Runner,
        task: Task,
        inputs: Sequence[Any],
        *,
        cpu_clock: Callable[[], float] = cpu_seconds,
    ) -> None:
        """Run a task in this thread and report it; `cpu_clock` tells processor seconds used on its behalf."""
        started_cpu = cpu_clock()
        try:
            result = operations.run(task.level, task.index, inputs)
            held = self._measure(result.payload)
            if task.level == self.last_level:
                result.payload = self._deliver(result.payload)
        except BaseException as error:
            self.failed(task, error)
            return
        self.finished(task, result, held, cpu_s=cpu_clock() - started_cpu)
        # An exception in the output holds the frames it went through, and they this one: it must not hold it too.
        del result

    def finished(self, task: Task, result: Result, held: Mapping[Any, int], *, cpu_s: float) -> None:
        """A task is done."""
        with self.lock:
            if self.closed:
                return
            # What was made before and lost is made again: its skips are known.
            if result.skipped and task.key not in self._booked:
                self._booked.add(task.key)
                if not self._skip(result.skipped):
                    return
            self.payloads[task.key] = result.payload
            self._free(self.scheduler.finish(task, self.clock(), held, cpu_s=cpu_s))
            self.work.notify()
            if self.scheduler.deliverable():
                self.output.notify()

    def failed(self, task: Task, error: BaseException) -> None:
        """A task raised: try again later, skip, or end the run."""
        with self.lock:
            if self.closed:
                return
            if isinstance(error, StorageError) and task.attempt <= self._retries:
                if task.attempt == 2:  # of a store of many requests one may fail now and then
                    logger.warning("%s; trying again, up to %d times in all", error, self._retries)
                retry_at = self.clock() + retry_delay(task.attempt)
                self.scheduler.fail(task, self.clock(), retry_at=retry_at)
                self.work.notify()
                return
            if isinstance(error, StorageError):
                message = f"{error} (gave up after {task.attempt} tries)"
                if self._job.skip:
                    if self._skip([message]):
                        missing = Missing(task.rows)
                        self.payloads[task.key] = missing
                        self._free(self.scheduler.finish(task, self.clock(), {}))
                        self.work.notify()
                    return
                last = error
                error = StorageError(message)
                error.__cause__ = last.__cause__
            elif not isinstance(error, IntuneError | KeyboardInterrupt | SystemExit | GeneratorExit):
                wrapped = StageError(
                    f"{self._job.where(task.level, task.index)}: {type(error).__name__}: {error}"
                )
                wrapped.__cause__ = error
                error = wrapped
            self._end(error)

    def end(self, error: BaseException) -> None:
        """End the run with an error, raised to the trainer at its next batch."""
        with self.lock:
            self._end(error)

    def held_here(self) -> bool:
        """Whether this thread holds the lock: then the garbage collector was called from under it."""
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined]
        return held

    def close(self) -> None:
        """End the run; workers stop after the task in hand, at the next call of a user's function at the latest."""
        with self.lock:
            self.closed = self._over.now = True
            self.payloads.clear()
            self.scheduler.ledger.clear()
            self.work.notify_all()
            self.output.notify_all()

    # ---- for the loader --------------------------------------------------------------------------------------

    def next_output(self, timeout: float | None = None) -> tuple[int, list[Any]] | None:
        """The next output of the last level, waiting for it; None at the end of the epoch.

        Raises:
            TimeoutError: it did not come within `timeout` seconds.
        """
        deadline = None if timeout is None else self.clock() + timeout
        with self.lock:
            while True:
                if self.error is not None:
                    raise self.error
                if self.closed:
                    return None
                index = self.scheduler.deliver()
                if index is not None:
                    return index, self.payloads[self.last_level, index]
                if self.scheduler.exhausted:
                    return None
                left = None if deadline is None else deadline - self.clock()
                if left is not None and left <= 0:
                    raise TimeoutError
                # Not for ever: a signal handler may have closed the run since it was looked, and nobody wakes us then.
                self.output.wait(LONGEST_WAIT_S if left is None else min(left, LONGEST_WAIT_S))

    def consumed(self, index: int) -> None:
        """The trainer is done with an output."""
        with self.lock:
            if not self.closed:
                self._free([self.scheduler.consumed(index, self.clock())])
                self.work.notify()

    # ---- under the lock --------------------------------------------------------------------------------------

    def _await_work(self, timeout: float | None, rest: Rest | None, taken: int) -> None:
        patience = None if rest is None else rest.patience
        seconds = min((each for each in (timeout, patience) if each is not None), default=None)
        woken = self.work.wait(seconds)
        # Short waits add up: where the system has no memory for a task there are no long ones, and then of all times
        # what idle threads keep is wanted.
        if rest is not None and seconds is not None and not woken and rest.waited(seconds):
            spare = self._taken > taken or self.scheduler.short_of_memory
            self.lock.release()
            try:
                rest.pause(spare)
            finally:
                self.lock.acquire()

    def _end(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._over.now = True
        self.work.notify_all()
        self.output.notify_all()

    def _skip(self, messages: Sequence[str]) -> bool:
        """Book skips; False if that ended the run."""
        self.skipped += len(messages)
        for message in messages:
            self._on_skip(message)
        if self.skipped > self._max_skipped:
            self._end(
                SkipLimitError(
                    f"{self.skipped} files, row groups or batches were skipped, more than `max_skipped`="
                    f"{self._max_skipped}; the last: {messages[-1]}"
                )
            )
            return False
        return True

    def _free(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self.payloads.pop(key, None)
        if self.on_free is not None and keys:
            self.on_free(keys)


def was_closed() -> LoaderError:
    """What to raise to who wants something of a loader that is closed."""
    return LoaderError("the loader is closed; make a new one")


def check_process(pid: int) -> None:
    """Refuse a loader that was made in process `pid` to a fork of it.

    Raises:
        LoaderError: this is one.
    """
    if os.getpid() != pid:
        raise LoaderError(
            f"the loader was made in process {pid} and cannot be used in its fork {os.getpid()}; "
            "make it after the fork, one in each process"
        )


def close_dropped(run: Run, close: Callable[[], None]) -> None:
    """Close what nobody refers to any more, when Python finds that out: perhaps in a worker that holds the run's lock
    just then. There another thread has to do it."""
    if run.held_here():
        with contextlib.suppress(RuntimeError):  # the interpreter is at its end
            threading.Thread(target=close, name="intune-close", daemon=True).start()
    else:
        close()


def finalize(pieces: Sequence[Piece]) -> list[Any]:
    """Batches as the trainer gets them: tensors, whatever the last stage was; None for those left out."""
    from intune.pipelines.transfer import Moving, to_tensors

    return [
        batch if batch is None or isinstance(batch, Moving) else to_tensors(batch)
        for piece in pieces
        for batch in piece.batches()
    ]
