"""What runs inside a Ray worker process: tasks, and the blocks they made that the next ones take."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import cloudpickle

from intune.pipelines.allocators import keep_freed_memory
from intune.pipelines.errors import IntuneError, LoaderError, NotFoundError, StageError
from intune.pipelines.executors.crew import Crew
from intune.pipelines.executors.landing import Place, Probe, Reached
from intune.pipelines.executors.packing import Packed, pack, unpickle
from intune.pipelines.joining import Joining
from intune.pipelines.memory import roots
from intune.pipelines.operations import Job, Operations, call_here, cpu_seconds
from intune.pipelines.payloads import only
from intune.pipelines.reading.reader import Reader
from intune.pipelines.schema import Block
from intune.pipelines.stages import Map

MOST_THREADS = 64
"""Tasks a worker can run at once: slots of a stage that waits for storage may far exceed its CPUs."""


Made: TypeAlias = "tuple[int, int, int]"
"""An output kept by a worker: (level, index, attempt). The attempt, lest letting go of a block that was lost
elsewhere and made again here takes the new one along."""

Export = Literal["keep", "send"] | Place
"""What becomes of an output: kept for the next task, sent through the object store, or laid into a segment."""


@dataclass(frozen=True, slots=True)
class Functions:
    """The user's functions: they may be large, and slow to load, and are mostly those of the epoch before.

    Attributes:
        digest: of what was pickled; the same as before means the same functions.
        pickled: where it lies in Ray's object store, in a list, so that only a worker that needs it fetches it.
    """

    digest: bytes
    pickled: list[Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task and the ones to do before it: an input is a number among the blocks given, or a recipe of its own."""

    level: int
    index: int
    inputs: tuple[int | Recipe, ...]


@dataclass(slots=True)
class Outcome:
    """What a worker tells of a task.

    Attributes:
        roots: buffers its output keeps alive.
        cpu_s: processor seconds of every level concerned.
        skipped: what had to be left out.
        packed: its output, if it was laid into a segment.
        error, cause: what was raised instead, and its cause apart, since pickling an exception leaves it out; pickled
            here, since Ray's own pickling makes another class of one that the user's script defines.
        trace: where that was, which pickling leaves out too.
    """

    roots: dict[int, int] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    packed: Packed | None = None
    error: bytes | None = None
    cause: bytes | None = None
    trace: str = ""


class OneAtATime:
    """Calls functions, of those that want a process one at a time, as in a process of their own: they need not bear
    threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, stage: Map, block: Block) -> dict[str, Any]:
        """What the stage's function makes of a block."""
        if stage.workers == "thread":
            return call_here(stage, block)
        with self._lock:
            return call_here(stage, block)


class RayWorker:
    """Runs tasks on threads and keeps their outputs until they are freed."""

    def __init__(self, number: int) -> None:
        self.number = number
        keep_freed_memory()
        self._lock = threading.Lock()
        self._generation = -1
        self._operations: Operations | None = None
        self._reader: Reader | None = None  # kept from epoch to epoch, and its files open with it
        self._maps: tuple[Map, ...] = ()  # kept as well: what a function has loaded it need not load again
        self._joining: Joining | None = None  # and what was measured of the last of them
        self._digest = b""
        self._call = OneAtATime()
        self._store: dict[Made, Any] = {}
        self._reached = Reached()
        self._near = True
        # Ray spreads calls over all of its threads. Memory allocators keep what a thread frees for that thread,
        # so tasks run on a crew that has no more threads than tasks ever ran at once.
        self._crew = Crew(MOST_THREADS, "intune-worker")

    def hello(self, probe: Probe | None = None) -> tuple[int, str, bool]:
        """Process and node of this worker, and whether it can lay outputs into the trainer's segments."""
        import ray

        if probe is not None:
            self._near = self._reached.finds(probe)
        return os.getpid(), ray.get_runtime_context().get_node_id(), self._near

    def begin(self, generation: int, job: bytes, functions: Functions) -> None:
        """Take up another epoch; what was kept of the one before is let go.

        Args:
            generation: its number.
            job: its `Job`, but for the user's functions.
            functions: those.
        """
        with self._lock:
            self._leave()
            self._generation, digest, maps = generation, self._digest, self._maps
        made: Job = cloudpickle.loads(job)
        if functions.digest != digest:
            import ray

            maps = cloudpickle.loads(ray.get(functions.pickled[0]))
        with self._lock:
            if generation != self._generation:
                return  # an interrupt came while this was loaded, and another epoch has begun since
            self._digest, self._maps, self._joining = functions.digest, maps, made.joining
            if self._reader is None:  # a worker is one loader's, and its files are always the same
                self._reader = Reader(made.dataset)
            self._operations = Operations(replace(made, maps=maps), self._call, reader=self._reader)

    def end(self, generation: int) -> None:
        """Nobody wants what is made for an epoch any more: what was kept of it is let go."""
        with self._lock:
            if generation == self._generation:
                self._leave()

    def _leave(self) -> None:
        if self._operations is not None:
            self._operations.job.over.now = True  # a task that is under way ends between two calls
            self._operations = None
        self._store.clear()

    def run(
        self, generation: int, recipe: Recipe, attempt: int, export: Export, freed: list[Made], *blocks: Any
    ) -> Any:
        """Do a task, and the ones before it that were left to it.

        Args:
            generation: the epoch it belongs to.
            recipe: the task.
            attempt: how often it has been started.
            export: what becomes of its output.
            freed: outputs that nobody needs any more.
            blocks: outputs to work on; those kept here are named, others come as they are.

        Returns:
            The `Outcome`; with ``export="send"``, a pair of it and the output.
        """
        return self._crew.call(self._run, generation, recipe, attempt, export, freed, blocks)

    def _run(
        self,
        generation: int,
        recipe: Recipe,
        attempt: int,
        export: Export,
        freed: list[Made],
        blocks: Sequence[Any],
    ) -> Any:
        outcome = Outcome()
        payload = None
        try:
            with self._lock:
                operations = self._operations
                if generation != self._generation or operations is None:
                    raise LoaderError("a task of an epoch that is over")
                for key in freed:
                    self._store.pop(key, None)
                blocks = [self._store[item] if isinstance(item, tuple) else item for item in blocks]
            payload = _make(operations, recipe, blocks, outcome)
            if isinstance(export, Place):
                began = time.thread_time()
                outcome.packed, lay = pack(payload)
                self._reached.lay(export, outcome.packed, lay)
                outcome.cpu_s[recipe.level] += time.thread_time() - began
        except BaseException as error:
            failed = failure(error if self._near else elsewhere(error))
            return (failed, None) if export == "send" else failed
        if export == "send":
            return outcome, payload
        if export == "keep":
            outcome.roots = roots(payload)
            with self._lock:
                if operations is self._operations:
                    self._store[recipe.level, recipe.index, attempt] = payload
        return outcome

    def export(self, generation: int, key: Made, first: int, last: int) -> Any:
        """An output kept here, for a task elsewhere; of one that is batches, no others than ``[first, last)``."""
        with self._lock:
            made = self._store.get(key) if generation == self._generation else None
        return only(made, first, last) if isinstance(made, list) else made

    def free(self, generation: int, keys: list[Made]) -> None:
        """Let go of outputs."""
        with self._lock:
            if generation == self._generation:
                for key in keys:
                    self._store.pop(key, None)


def _make(operations: Operations, recipe: Recipe, blocks: Sequence[Any], outcome: Outcome) -> Any:
    """The output of a task, with what it took and what was skipped added to `outcome`."""
    inputs = [
        blocks[part] if isinstance(part, int) else _make(operations, part, blocks, outcome)
        for part in recipe.inputs
    ]
    began = cpu_seconds()
    result = operations.run(recipe.level, recipe.index, inputs)
    outcome.cpu_s[recipe.level] = outcome.cpu_s.get(recipe.level, 0.0) + cpu_seconds() - began
    outcome.skipped += result.skipped
    return result.payload


def elsewhere(error: BaseException) -> BaseException:
    """The same error on another machine than the trainer's, which may lack files that the trainer sees."""
    if not isinstance(error, NotFoundError):
        return error
    said = NotFoundError(
        f"{error}; it was looked for on node {socket.gethostname()!r}: every node of the Ray cluster must find the "
        "files at the same path, or in a store that all can reach"
    )
    said.__cause__ = error.__cause__
    return said


def failure(error: BaseException) -> Outcome:
    """What is told of a task that raised."""
    cause = error.__cause__
    # Of errors of ours their sentence says it all.
    first = cause or (None if isinstance(error, IntuneError) else error)
    return Outcome(
        error=_pickled(error),
        cause=None if cause is None else _pickled(cause),
        trace="" if first is None else "".join(traceback.format_exception(first)).rstrip(),
    )


def raised(outcome: Outcome) -> BaseException:
    """The error that a `failure` tells of, made again in the trainer's process."""
    assert outcome.error is not None
    error = _made_again(outcome.error, outcome.trace)
    if outcome.cause is not None:
        error.__cause__ = _made_again(outcome.cause, outcome.trace)
    if outcome.trace:
        (error.__cause__ or error).add_note(f"In the Ray worker:\n{outcome.trace}")
    return error


def _made_again(error: bytes, trace: str) -> BaseException:
    try:
        made: BaseException = unpickle(error)
    except Exception:  # its class is not to be had here: the words remain
        return StageError(trace.rsplit("\n", 1)[-1])
    return made


def _pickled(error: BaseException) -> bytes:
    """The error, or what can be said of it where it cannot be sent: exceptions of user code may hold anything."""
    try:
        pickled: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(pickled)
    except Exception:  # whatever the user's class does when it is pickled
        pickled = cloudpickle.dumps(StageError("".join(traceback.format_exception_only(error)).rstrip()))
    return pickled
