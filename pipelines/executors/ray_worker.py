"""What runs inside a Ray worker process: tasks, and the blocks they made that the next ones take."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from intune.pipelines.dataset import Reader
from intune.pipelines.errors import LoaderError, StageError
from intune.pipelines.executors.malloc import keep_freed_memory
from intune.pipelines.memory import roots
from intune.pipelines.operations import Job, Operations
from intune.pipelines.scheduler import Key

MOST_THREADS = 64
"""Tasks a worker can run at once: slots of a stage that waits for storage may far exceed its CPUs."""


@dataclass(slots=True)
class Outcome:
    """What a worker tells of a task: buffers its output keeps alive, processor seconds, skips, or the error."""

    roots: dict[int, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    skipped: list[str] = field(default_factory=list)
    error: BaseException | None = None
    cause: BaseException | None = None  # apart, since pickling an exception leaves out its cause


class RayWorker:
    """Runs tasks on threads and keeps their outputs until they are freed."""

    def __init__(self, number: int) -> None:
        self.number = number
        keep_freed_memory()
        self._lock = threading.Lock()
        self._generation = -1
        self._operations: Operations | None = None
        self._reader: Reader | None = None  # kept from epoch to epoch, and its files open with it
        self._store: dict[Key, Any] = {}
        # Ray spreads calls over all of its threads. Memory allocators keep what a thread frees for that thread,
        # so tasks run on a pool that has no more threads than tasks ever ran at once.
        self._pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="intune-worker")

    def hello(self) -> tuple[int, str]:
        """Process and node of this worker."""
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def begin(self, generation: int, job: bytes) -> None:
        """Take up another epoch; what was kept of the one before is let go."""
        made: Job = cloudpickle.loads(job)
        with self._lock:
            if self._reader is None or self._reader.dataset != made.dataset:
                self._reader = Reader(made.dataset)
            self._operations = Operations(made, reader=self._reader)
            self._generation = generation
            self._store.clear()

    def run(self, generation: int, level: int, index: int, export: bool, *inputs: Any) -> tuple[Outcome, Any]:
        """Do one task. `inputs` are keys of outputs kept here, or payloads from elsewhere.

        Returns:
            The outcome, and the payload if it is to be exported (else it is kept here).
        """
        return self._pool.submit(self._run, generation, level, index, export, inputs).result()

    def _run(
        self, generation: int, level: int, index: int, export: bool, inputs: tuple[Any, ...]
    ) -> tuple[Outcome, Any]:
        began = time.thread_time()
        try:
            with self._lock:
                operations = self._operations
                if generation != self._generation or operations is None:
                    raise LoaderError("a task of an epoch that is over")
                payloads = [self._store[item] if isinstance(item, tuple) else item for item in inputs]
            result = operations.run(level, index, payloads)
        except BaseException as error:
            cause = error.__cause__
            return Outcome(error=portable(error), cause=None if cause is None else portable(cause)), None
        outcome = Outcome(skipped=result.skipped, cpu_s=time.thread_time() - began)
        if export:
            return outcome, result.payload
        outcome.roots = roots(result.payload)
        with self._lock:
            if generation == self._generation:
                self._store[level, index] = result.payload
        return outcome, None

    def export(self, generation: int, key: Key) -> Any:
        """An output kept here, for a task elsewhere."""
        with self._lock:
            if generation != self._generation:
                return None
            return self._store[key]

    def free(self, generation: int, keys: list[Key]) -> None:
        """Let go of outputs."""
        with self._lock:
            if generation == self._generation:
                for key in keys:
                    self._store.pop(key, None)


def portable(error: BaseException) -> BaseException:
    """The error, or what can be said of it where it cannot be sent: exceptions of user code may hold anything."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever the user's class does when it is pickled
        return StageError(f"{type(error).__name__}: {error}")
    return error
