"""Worker processes for a DataLoader: a pool for a map-style dataset, one for each iterator of an iterable-style.

The dataset is sent once to every process, and again in a later epoch only where the DataLoader's own workers
would see another one, or the code changes its copy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from intune.adapters.dataloader.generators import EpochSeed
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.sending.worker import BeginRequest, FetchRequest, NextRequest
from intune.adapters.dataloader.tasks import Made
from intune.pipelines.errors import LoaderError, WorkerLostError
from intune.pipelines.executors.process import Process
from intune.pipelines.executors.processes import DYING_S, ProcessPool
from intune.pipelines.stages import Map

STAGE = Map(function=lambda block: block, workers="process", name="fetch")
"""As what the pool knows the function; the function itself is the `Worker` that was sent."""


LIBRARIES = ("torch.utils.data", "intune.adapters.dataloader.sending.worker")
"""What every worker of a DataLoader imports."""


class Processes:
    """All worker processes of one loader; what a `ThreadFleet` knows of them."""

    def __init__(self) -> None:
        self.pool = ProcessPool((), libraries=LIBRARIES)
        self.sources: list[SourceProcess] = []
        self._idle: list[list[SourceProcess]] = []
        self._used = threading.local()

    def __call__(self, stage: Map, block: Any, where: Callable[[], str] | None = None) -> Any:
        """Have the pool make something."""
        return self.pool(stage, block, where)

    def resize(self, count: int) -> None:
        """Have no more than so many make batches of a map-style dataset; those of iterators hold their places."""
        self.pool.resize(count)

    def give_back_memory(self) -> None:
        """As `ProcessPool.give_back_memory`; iterators' processes are at work as long as there are any."""
        self.pool.give_back_memory()

    def borrow_sources(self, count: int) -> list[SourceProcess]:
        """Processes for the iterators of one loop, one each."""
        with contextlib.suppress(IndexError):  # a loop may end, or begin, in another thread
            return self._idle.pop()
        made = [SourceProcess() for _ in range(count)]
        self.sources.extend(made)
        return made

    def give_back_sources(self, sources: list[SourceProcess]) -> None:
        """The loop is over; each process ends the batch it is at first."""
        self._idle.append(sources)

    def ask(self, source: SourceProcess, request: Any, worker: bytes) -> Any:
        """Have an iterator's process answer, and book its processor time to the calling thread."""
        reply, cpu_s = source.ask(request, worker)
        self._used.cpu_s = float(getattr(self._used, "cpu_s", 0.0)) + cpu_s
        if isinstance(reply, BaseException):
            raise reply
        return reply

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that requests of the current thread took in processes, so far."""
        return self.pool.cpu_s + float(getattr(self._used, "cpu_s", 0.0))

    @property
    def workers_lost(self) -> int:
        """Processes that died."""
        return self.pool.workers_lost + sum(source.lost for source in self.sources)

    @property
    def starting(self) -> bool:
        """Whether some are not ready for their first request yet."""
        return self.pool.starting or any(source.starting for source in self.sources)

    def pids(self) -> list[int]:
        """The processes."""
        return [*self.pool.pids(), *(pid for source in self.sources for pid in source.pids())]

    def close(self, patience: float = 2.0) -> None:
        """End all processes, those at work after `patience` seconds at most."""
        deadline = time.monotonic() + patience
        self.pool.close(patience)
        for source in self.sources:
            source.close(max(0.0, deadline - time.monotonic()))


class ProcessFetcher:
    """Batches of a map-style dataset, made by a pool of processes."""

    def __init__(self, processes: Processes, seed: EpochSeed, where: Callable[[Item], str]) -> None:
        self._processes = processes
        self._seed = seed
        self._where = where

    def fetch(self, item: Item) -> Made:
        """As `Fetcher.fetch`; fetching and collating are one call there."""
        request: Any = FetchRequest(item.ordinal, item.index, self._seed)
        batch = self._processes(STAGE, request, lambda: self._where(item))
        return Made(item, item.rows, batch, collated=True)


class SourceProcess:
    """The process of one iterator. It keeps its state, so that it is lost for good if it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._closed = False
        self.lost = 0

    def ask(self, request: Any, worker: bytes) -> tuple[Any, float]:
        """Its answer, or the exception raised there, and the processor time it took.

        Args:
            worker: the dataset and what goes with it; sent if it is another object than last time.

        Raises:
            WorkerLostError: the process died.
            LoaderError: it was closed.
        """
        with self._lock:
            if self._closed:
                raise LoaderError("the loader was closed while this ran")
            if self._process is None:
                self._process = Process(getattr(request, "worker", 0), LIBRARIES)
            try:
                self._process.prepare(STAGE.name, worker)
                return self._process.call(STAGE.name, request, None)
            except EOFError:
                if self._closed:
                    raise LoaderError("the loader was closed while this ran") from None
                self.lost += 1
                ending = self._end(self._process)
                raise WorkerLostError(
                    f"the process of this iterator {ending}; what it had read is lost: begin the epoch anew"
                ) from None

    @property
    def starting(self) -> bool:
        """Whether the process is not ready for its first request yet."""
        process = self._process
        return process is not None and process.fresh

    def pids(self) -> list[int]:
        """The process, if it runs."""
        process = self._process
        return [pid] if process is not None and (pid := process.pid) is not None else []

    def close(self, patience: float = 2.0) -> None:
        """End the process, if need be in the middle of its work."""
        self._closed = True
        if (starting := self._process) is not None and starting.fresh:
            starting.kill()
        if not self._lock.acquire(timeout=0.0 if self._process is None else patience):
            if (process := self._process) is not None:
                process.kill()  # whoever waits for it sees that, and ends it
            return
        try:
            if self._process is not None:
                self._process.hang_up()
                self._process.end(patience)
                self._process = None
        finally:
            self._lock.release()

    def _end(self, process: Process) -> str:
        process.hang_up()
        self._process = None
        return process.end(DYING_S)


class SourceLink:
    """One iterator in its process, for one epoch: begun at its first request.

    Args:
        process: one of `processes`, for nobody else meanwhile.
        worker: the stream of a `Parcel`.
        number: of the iterator.
        skip: batches at its start that were handed over before.
    """

    def __init__(
        self,
        processes: Processes,
        process: SourceProcess,
        worker: bytes,
        number: int,
        *,
        seed: EpochSeed,
        skip: int = 0,
    ) -> None:
        self._processes = processes
        self._process = process
        self._worker = worker
        self._begin: BeginRequest | None = BeginRequest(number, seed, skip)
        self._over = False

    def take(self, item: Item) -> Made:
        """The iterator's next batch; none after its process has died or could not begin."""
        if self._over:
            return Made(item, 0, None, collated=True, ended=True)
        if self._begin is not None:
            begin, self._begin, self._over = self._begin, None, True
            self._processes.ask(self._process, begin, self._worker)
            self._over = False
        try:
            taken = self._processes.ask(self._process, NextRequest(), self._worker)
        except WorkerLostError:
            self._over = True
            raise
        if taken is None:
            return Made(item, 0, None, collated=True, ended=True)
        return Made(item, taken[0], taken[1], collated=True)
