"""One epoch under way: what executors and the loader share under one lock.

Executors take tasks and report them; the loader takes outputs in order. Errors, skips, retries and the time
limits of user code are settled here, once for all executors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intune.pipelines.errors import IntuneError, SkipLimitError, StageError, StageTimeout, StorageError
from intune.pipelines.memory import roots
from intune.pipelines.operations import Job, Missing, Operations, Piece, Result
from intune.pipelines.scheduler import Key, Scheduler, Task

FIRST_DELAY = 0.1
"""Seconds before the first retry of a failed read; doubled each time, since storage that is overloaded or
restarting needs time more than it needs requests."""

LONGEST_DELAY = 5.0


class Run:
    """An epoch under way.

    Args:
        job: the epoch's work.
        scheduler: its state; touched only under `lock`.
        retries: how often a failed read is tried again.
        max_skipped: how many skips are tolerated.
        on_skip: told of every skip (a sentence).
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        job: Job,
        scheduler: Scheduler,
        *,
        retries: int,
        max_skipped: int,
        on_skip: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.scheduler = scheduler
        self.clock = clock
        self.lock = threading.Lock()
        self.work = threading.Condition(self.lock)
        self.output = threading.Condition(self.lock)
        self.payloads: dict[Key, Any] = {}
        self.error: BaseException | None = None
        self.closed = False
        self.on_free: Callable[[Sequence[Key]], None] | None = None
        self.on_abandon: Callable[[Task], None] | None = None
        self.skipped = 0
        self.last_level = len(job.plan.levels) - 1
        self._retries = retries
        self._max_skipped = max_skipped
        self._on_skip = on_skip
        self._calls: dict[Key, tuple[float, float]] = {}
        self._abandoned: set[tuple[Key, int]] = set()

    # ---- for executors ---------------------------------------------------------------------------------------

    def take(self) -> tuple[Task, list[Any]] | None:
        """The next task and its inputs, waiting until there is one; None once the run is over."""
        with self.lock:
            while not self.closed and self.error is None:
                now = self.clock()
                task = self.scheduler.take(now)
                if task is not None:
                    self.work.notify()  # there may be more; the one woken wakes the next
                    return task, [self.payloads[key] for key in task.inputs]
                due = self.scheduler.next_due
                self.work.wait(None if due is None else max(0.0, due - now))
            return None

    def execute(
        self,
        operations: Operations,
        task: Task,
        inputs: Sequence[Any],
        *,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Run a task in this thread and report it; `cpu_clock` tells processor seconds used on its behalf."""
        started_cpu = cpu_clock()
        try:
            result = operations.run(task.level, task.index, inputs)
            held = roots(result.payload)
            if task.level == self.last_level:
                result.payload = finalize(result.payload)
        except BaseException as error:
            self.failed(task, error)
            return
        self.finished(task, result, held, cpu_s=cpu_clock() - started_cpu)

    def finished(self, task: Task, result: Result, held: Mapping[Any, int], *, cpu_s: float) -> None:
        """A task is done."""
        with self.lock:
            if self._is_stale(task):
                return
            if result.skipped and not self._skip(result.skipped):
                return
            self.payloads[task.key] = result.payload
            self._free(self.scheduler.finish(task, self.clock(), held, cpu_s=cpu_s))
            self.work.notify()
            if self.scheduler.deliverable():
                self.output.notify()

    def failed(self, task: Task, error: BaseException) -> None:
        """A task raised: try again later, skip, or end the run."""
        with self.lock:
            if self._is_stale(task):
                return
            if isinstance(error, StorageError) and task.attempt <= self._retries:
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (task.attempt - 1))
                self.scheduler.fail(task, self.clock(), retry_at=self.clock() + delay)
                self.work.notify()
                return
            if isinstance(error, StorageError):
                message = f"{error} (gave up after {task.attempt} tries)"
                if self.job.skip:
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
                    f"{self.job.where(task.level, task.index)}: {type(error).__name__}: {error}"
                )
                wrapped.__cause__ = error
                error = wrapped
            self._end(error)

    def end(self, error: BaseException) -> None:
        """End the run with an error, raised to the trainer at its next batch."""
        with self.lock:
            self._end(error)

    def close(self) -> None:
        """End the run; workers stop after the task in hand."""
        with self.lock:
            self.closed = True
            self.payloads.clear()
            self.scheduler.ledger.clear()
            self.work.notify_all()
            self.output.notify_all()

    # ---- for the loader --------------------------------------------------------------------------------------

    def next_output(self) -> tuple[int, list[Any]] | None:
        """The next output of the last level, waiting for it; None at the end of the epoch."""
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
                self.output.wait(self._check_deadlines())

    def consumed(self, index: int) -> None:
        """The trainer is done with an output."""
        with self.lock:
            if not self.closed:
                self._free([self.scheduler.consumed(index, self.clock())])
                self.work.notify()

    # ---- user code with a time limit -------------------------------------------------------------------------

    def call_started(self, task: Task, seconds: float) -> None:
        """A call of user code begins that may take `seconds`."""
        with self.lock:
            self._calls[task.key] = (self.clock() + seconds, seconds)
            self.output.notify()

    def call_ended(self, task: Task) -> None:
        """The call is over."""
        with self.lock:
            self._calls.pop(task.key, None)

    def _check_deadlines(self) -> float | None:
        """Seconds until the next time limit; ends the run, or gives a task up, where one has passed."""
        if not self._calls:
            return None
        now = self.clock()
        for task in self.scheduler.running_tasks():
            due, seconds = self._calls.get(task.key, (now + 1.0, 0.0))
            if due > now:
                continue
            where = self.job.where(task.level, task.index)
            message = (
                f"{where}: the function did not return within `timeout`={seconds:g} s; mend it or allow more"
            )
            self._calls.pop(task.key)
            self._abandoned.add((task.key, task.attempt))
            if self.on_abandon is not None:
                self.on_abandon(task)
            if not self.job.skip:
                self._end(StageTimeout(message))
                return 0.0
            if not self._skip([message]):
                return 0.0
            level = self.job.plan.levels[task.level]
            batches = int(level.stop[task.index] - level.start[task.index])
            in_batches = task.level >= self._batch_level()
            self.payloads[task.key] = [Piece(None, [0] * (batches + 1))] if in_batches else Missing(task.rows)
            self._free(self.scheduler.finish(task, now, {}))
            self.work.notify()
            return 0.0
        return max(0.0, min(due for due, _ in self._calls.values()) - now) if self._calls else None

    def _batch_level(self) -> int:
        return next(i for i, level in enumerate(self.job.plan.levels) if level.operation == "batch")

    # ---- under the lock --------------------------------------------------------------------------------------

    def _is_stale(self, task: Task) -> bool:
        """Whether a report comes too late: the run is over or the task was given up."""
        self._calls.pop(task.key, None)
        if (task.key, task.attempt) in self._abandoned:
            self._abandoned.discard((task.key, task.attempt))
            return True
        return self.closed

    def _end(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
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
                    f"{self.skipped} row groups or batches were skipped, more than `max_skipped`="
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


def finalize(pieces: Sequence[Piece]) -> list[Any]:
    """Batches as the trainer gets them: tensors, whatever the last stage was; None for those left out."""
    from intune.pipelines.transfer import Moving, to_tensors

    return [
        batch if batch is None or isinstance(batch, Moving) else to_tensors(batch)
        for piece in pieces
        for batch in piece.batches()
    ]
