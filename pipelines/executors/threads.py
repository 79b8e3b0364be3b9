"""Workers as threads of this process: blocks are never copied between stages.

NumPy, Arrow and torch release Python's lock while they work; functions that hold it can run in processes
(`processes.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from intune.pipelines.allocators import give_back, keep_between_tasks
from intune.pipelines.budget import Budget
from intune.pipelines.idle import Rest
from intune.pipelines.operations import Operations, call_here, cpu_seconds
from intune.pipelines.reading.files import OpenFiles
from intune.pipelines.reading.reader import Reader
from intune.pipelines.run import Run, Runner, was_closed
from intune.pipelines.schema import Block
from intune.pipelines.stages import Map

logger = logging.getLogger("intune")


class Elsewhere(Protocol):
    """Worker processes that threads have things done in; a `ProcessPool`, for one."""

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that calls of the current thread took there, so far."""

    @property
    def workers_lost(self) -> int:
        """Processes that died."""

    def __call__(self, stage: Map, block: Any, where: Callable[[], str] | None = None) -> Any:
        """Run a stage's function there."""

    def pids(self) -> list[int]:
        """The processes."""

    def resize(self, most: int) -> None:
        """End those beyond `most` that have no work."""

    def give_back_memory(self) -> None:
        """Give back memory that is kept for calls to come, of those that have had none for a while."""

    def close(self) -> None:
        """End them."""


class ThreadFleet:
    """Generic worker threads, kept from epoch to epoch; any of them runs any stage's tasks.

    Args:
        processes: where functions of stages with ``workers="process"`` run; None if there are none.
        files: of the data set, those open already; closed with the fleet.
        budget: of the pipeline; decides how much freed memory its threads keep for their next task.
    """

    chunk_rows = 32_768
    """Small tasks, so that a resize takes effect soon, but long ones beside the 50 us that each costs."""

    def __init__(
        self,
        *,
        processes: Elsewhere | None = None,
        files: OpenFiles | None = None,
        budget: Budget | None = None,
    ) -> None:
        if budget is not None:
            keep_between_tasks(budget.memory, budget.cpus)
        self._processes = processes
        self._files = OpenFiles() if files is None else files  # they stay open from epoch to epoch
        self._threads: list[threading.Thread] = []
        self._wanted = 0
        self._told = 0  # threads that there were when it was last said that there can be no more
        self._idle = threading.Condition()
        self._run: Run | None = None
        self._operations: Runner | None = None
        self._reader: Reader | None = None
        self._closed = False
        self._current = threading.local()

    def default_slots(self, budget: Budget) -> int:
        """As many as there are CPUs: a thread that computes needs one."""
        return budget.cpus

    def start(self, run: Run, threads: int, runner: Runner | None = None) -> None:
        """Work on a run from now on.

        Args:
            runner: does its tasks, where they are not a pipeline's.

        Raises:
            LoaderError: the fleet was closed, perhaps by another thread just now.
        """
        if (left := self._run) is not None:
            left.close()  # which an interrupt kept from being left: it would keep the threads
        with self._idle:
            closed = self._closed
            if not closed:
                self._run = run
                self._operations = self._of_pipeline(run) if runner is None else runner
                self._idle.notify_all()
        if closed:
            run.close()
            raise was_closed()
        self.resize(threads)

    def resize(self, threads: int, processes: int | None = None) -> None:
        """Have at least `threads` threads, or as many as the system allows; none is ever stopped, since an idle one
        costs nothing. Of worker processes, which hold memory, those beyond `processes` are ended."""
        if processes is not None and self._processes is not None:
            self._processes.resize(processes)
        with self._idle:
            self._wanted = max(self._wanted, threads)
            while len(self._threads) < self._wanted and not self._closed:
                try:
                    self._spawn()
                except RuntimeError as error:
                    if not self._threads:
                        raise
                    self._wanted = len(self._threads)
                    if self._told != self._wanted:  # a tuner asks for more now and then
                        self._told = self._wanted
                        logger.warning(
                            "no further thread can be started (%s); going on with %d", error, self._wanted
                        )

    def stop(self, run: Run | None = None) -> None:
        """Leave the run under way, if it is `run` or none is named. A thread in the middle of a task ends it for
        nobody, then is free."""
        with self._idle:
            current = self._run
            if run is not None and run is not current:
                return
        if current is not None:
            current.close()  # before it is forgotten: an interrupt may come in between
        with self._idle:
            if self._run is current:
                self._run = self._operations = None

    def close(self, patience: float = 5.0) -> list[str]:
        """End all threads, waiting `patience` seconds at most; names those that did not end (user code that
        hangs)."""
        with self._idle:
            self._closed = True
            self._idle.notify_all()
            threads, self._threads = self._threads, []
        self.stop()  # not before: what is started in between would be left to nobody
        if self._processes is not None:
            self._processes.close()  # before the threads: one may be waiting for a function that hangs
        threads = [thread for thread in threads if thread is not threading.current_thread()]
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._files.close()  # after the threads: one in the middle of a read may have opened a file
        return [thread.name for thread in threads if thread.is_alive()]

    def pids(self) -> list[int]:
        """Worker processes beside this one."""
        return [] if self._processes is None else self._processes.pids()

    @property
    def workers_lost(self) -> int:
        """Worker processes that died."""
        return 0 if self._processes is None else self._processes.workers_lost

    def _of_pipeline(self, run: Run) -> Operations:
        if self._reader is None or self._reader.dataset is not run.job.dataset:
            self._reader = Reader(run.job.dataset, self._files, stopped=_over(self._current))
        return Operations(run.job, self._watched, reader=self._reader)

    def _spawn(self) -> None:
        thread = threading.Thread(
            target=_work, args=(self,), name=f"intune-worker-{len(self._threads)}", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def give_back_memory(self) -> None:
        """What is kept for the next task, of the calling thread above all."""
        give_back()
        if self._processes is not None:
            self._processes.give_back_memory()

    def next_run(self, rest: Rest) -> tuple[Run, Runner] | None:
        """The run to work on, waiting for one; None once the fleet is closed."""
        while True:
            with self._idle:
                if self._closed:
                    return None
                run, operations = self._run, self._operations
                if run is not None and operations is not None and not run.closed and run.error is None:
                    return run, operations
                woken = self._idle.wait(rest.patience)
            if not woken:
                rest.pause(spare=False)

    def work_on(self, run: Run, operations: Runner, rest: Rest) -> None:
        """Run tasks until the run is over."""
        try:
            while (taken := run.take(rest)) is not None:
                task, inputs = taken
                self._current.run, self._current.task = run, task
                run.execute(operations, task, inputs, cpu_clock=self._cpu_seconds)
                del inputs, taken
        finally:
            # A run knows its loader, which could never be freed while a thread remembers the run.
            self._current.run = self._current.task = None

    def _cpu_seconds(self) -> float:
        """Processor time of this thread and of what it had done in other threads and in processes."""
        elsewhere = 0.0 if self._processes is None else self._processes.cpu_s
        return cpu_seconds() + elsewhere

    def _watched(self, stage: Map, block: Block) -> dict[str, Any]:
        if self._processes is None:
            return call_here(stage, block)
        run, task = self._current.run, self._current.task
        made: dict[str, Any] = self._processes(stage, block, lambda: run.job.where(task.level, task.index))
        return made


def _work(fleet: ThreadFleet) -> None:
    rest = Rest(fleet.give_back_memory)
    while (found := fleet.next_run(rest)) is not None:
        try:
            fleet.work_on(*found, rest)
        except BaseException as error:  # a defect of ours: the trainer must hear of it, not wait for ever
            found[0].end(error)
        del found


def _over(current: threading.local) -> Callable[[], bool]:
    """Whether the run whose task the calling thread does is over. Knows no fleet, which a reader must not keep."""

    def over() -> bool:
        run: Run | None = getattr(current, "run", None)
        return run is not None and (run.closed or run.error is not None)

    return over
