"""Workers as Ray actors over a cluster, started on this machine where none is connected or named.

A worker keeps what it makes; the scheduler's next task on it goes to the same worker where that can be, so a
block crosses the object store only when it changes process, and goes to the trainer through shared memory where
both are on one machine (`landing.py`). Tasks that only show what they take (batches of a block) are not worth a
call: they are done with the task that takes them. Tasks are pure: what is lost with a worker is made again by
another.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError, LoaderError, StageError, WorkerLostError
from intune.pipelines.executors.landing import Landings, Place
from intune.pipelines.executors.packing import by_value, unpack
from intune.pipelines.executors.ray_records import (
    Arrived,
    Call,
    Held,
    Output,
    Postponed,
    Worker,
    blocks_of,
    let_go,
    recipe_of,
)
from intune.pipelines.executors.ray_worker import Export, Made, Outcome, raised
from intune.pipelines.executors.ray_workers import RayWorkers
from intune.pipelines.operations import Operations, Result
from intune.pipelines.plan import Plan
from intune.pipelines.run import Run, finalize, was_closed
from intune.pipelines.schema import block_bytes
from intune.pipelines.tasks import Key, Task

logger = logging.getLogger("intune")

SUSPECT_AFTER = 2
"""Deaths of its worker after which a task runs alone, so that the next death is surely its own."""

MOST_DEATHS = 2
"""Deaths of a worker with nothing but this task on it after which the job fails."""

WATCH_S = 1.0
"""Seconds between two looks at whether Ray is still there."""

SILENCE_S = 60.0
"""Seconds in which no task ends after which it is said what they may all wait for."""


class RayFleet:
    """A worker process per CPU of the budget; all run any stage's tasks, several at once.

    Args:
        budget: CPUs and memory the pipeline may use.

    Raises:
        ConfigError: the cluster has no room for a worker.
    """

    chunk_rows = 65_536
    """Coarse tasks: a call costs 1 to 2 ms on Ray."""

    def __init__(self, budget: Budget) -> None:
        self._run: Run | None = None
        self._operations: Operations | None = None
        self._dispatcher: threading.Thread | None = None
        self._groups: dict[int, Worker] = {}
        self._outputs: dict[Key, Output] = {}
        self._deaths: dict[Key, int] = {}
        self._closed = threading.Event()
        self._heard = 0.0  # when a task was given out, or came back, for the last time
        self._unique = itertools.count(1)
        self._landings = Landings()
        try:
            self._workers = RayWorkers(budget, self._landings, self._none_left)
        except BaseException:
            self._landings.close()
            raise
        self._ray, self._changed = self._workers.ray, self._workers.changed
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="intune-ray")
        threading.Thread(target=self._watch, name="intune-ray-watch", daemon=True).start()

    # ---- what the loader calls -------------------------------------------------------------------------------

    def default_slots(self, budget: Budget) -> int:
        """Two a worker: while one task computes, the messages and blocks of another are under way."""
        return 2 * len(self._workers.alive)

    def start(self, run: Run, threads: int) -> None:
        """Work on a run from now on.

        Raises:
            ConfigError: a function of the pipeline cannot be sent to the workers, or not be loaded there.
            LoaderError: Ray was shut down, or the fleet closed, perhaps by another thread just now.
        """
        try:
            self._start(run)
        except Exception as error:
            if not self._closed.is_set():
                raise
            run.close()
            raise was_closed() from error

    def _start(self, run: Run) -> None:
        if (left := self._run) is not None:
            left.close()  # which an interrupt kept from being left
        with self._changed:
            if self._closed.is_set():
                raise was_closed()
            self._workers.check_connected()
            generation = self._workers.take_up(_pickled(replace(run.job, maps=())), _pickled(run.job.maps))
            self._run = run
            self._operations = Operations(run.job)
            self._groups.clear()
            self._deaths.clear()
            self._outputs.clear()
            for worker in self._workers.alive:
                worker.held.clear()
                worker.freed.clear()
            workers = list(self._workers.alive)
        run.on_free = self._free
        for worker in self._workers.brief(workers):
            self._died(worker)
        self._workers.have_one()
        self._dispatcher = threading.Thread(
            target=self._dispatch, args=(run, generation), name="intune-dispatcher", daemon=True
        )
        self._dispatcher.start()

    def resize(self, threads: int, processes: int | None = None) -> None:
        """Nothing to do: the workers run as many tasks as the scheduler gives out."""

    def stop(self, run: Run | None = None) -> None:
        """Leave the run under way, if it is `run` or none is named."""
        with self._changed:
            current = self._run
            if run is not None and run is not current:
                return
        if current is not None:
            current.close()  # before it is forgotten: an interrupt may come in between
        with self._changed:
            if self._run is not current:
                return
            self._run = None
            generation = self._workers.generation
            operations, self._operations = self._operations, None
            dispatcher, self._dispatcher = self._dispatcher, None
            self._changed.notify_all()
        if dispatcher is not None and dispatcher is not threading.current_thread():
            dispatcher.join(5.0)
        if operations is not None:
            operations.close()
        self._workers.end_job(generation)

    def close(self) -> list[str]:
        """End all workers, and the Ray started here if no other loader uses it."""
        with self._changed:
            if self._closed.is_set():
                return []
            self._closed.set()
            self._changed.notify_all()
        self.stop()  # not before: what is started in between would be left to nobody
        try:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._workers.close()
        finally:
            self._landings.close()
        return []

    def pids(self) -> list[int]:
        """Worker processes on this machine."""
        return self._workers.pids()

    @property
    def workers_lost(self) -> int:
        """Worker processes that died."""
        return self._workers.lost

    # ---- what goes wrong -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Ray tells nobody that it was shut down, and calls that were under way are never heard of again; nor that a
        task of the user's waits for a CPU."""
        told = False
        while not self._closed.wait(WATCH_S):
            try:
                self._workers.check_connected()
            except LoaderError as error:
                run = self._run
                if run is not None:
                    run.end(error)
                return
            if not told and self._is_silent() and self._workers.hold_all():
                told = True
                logger.warning(
                    "no task has ended on Ray in %.0f s, and this loader's workers hold all CPUs: functions of the "
                    "pipeline that start tasks or actors themselves wait for ever; leave them some, by `budget`",
                    SILENCE_S,
                )

    def _is_silent(self) -> bool:
        with self._changed:
            busy = any(worker.running for worker in self._workers.alive)
            return busy and time.monotonic() - self._heard > SILENCE_S

    def _died(self, worker: Worker) -> None:
        """A worker process is gone: what it held and did is made again, another takes its place."""
        with self._changed:
            if worker.dead or self._closed.is_set():
                return
            self._workers.gone(worker)
            run = self._run
            held, tasks = list(worker.held), len(worker.running) + 1
            for group in [group for group, home in self._groups.items() if home is worker]:
                del self._groups[group]
        again = []
        if run is not None:
            with run.lock:
                if not run.closed:
                    again = self._lose(run, held)
        logger.warning(
            "Ray worker %d (pid %d) died; the %d task(s) it was running and the %d block(s) it held are made again",
            worker.number,
            worker.pid,
            tasks,
            len(again),
        )
        self._workers.replace()

    def _lose(self, run: Run, keys: Sequence[Key]) -> list[Key]:
        """These outputs went with their worker (under the run's lock)."""
        lost = run.scheduler.lose(keys, run.clock())
        for key in lost:
            run.payloads.pop(key, None)
        self._free(lost)
        return lost

    def _none_left(self, error: Exception) -> None:
        run = self._run
        if run is not None:
            run.end(WorkerLostError(f"a Ray worker died and none could be started in its place: {error}"))
        else:
            logger.warning("a Ray worker died and none could be started in its place: %s", error)

    # ---- giving out tasks ------------------------------------------------------------------------------------

    def _dispatch(self, run: Run, generation: int) -> None:
        try:
            while (taken := run.take()) is not None:
                task, inputs = taken
                self._workers.check_connected()
                if run.job.plan.levels[task.level].operation == "transfer":
                    self._pool.submit(self._transfer, run, task, inputs)
                elif self._is_postponed(run, task):
                    self._postpone(run, task, inputs)
                else:
                    self._submit(run, generation, task, inputs)
                del inputs, taken
        except BaseException as error:  # Ray is gone, or a defect of ours: the trainer must hear of it
            if not self._closed.is_set():
                run.end(error)

    def _submit(self, run: Run, generation: int, task: Task, inputs: Sequence[Output]) -> None:
        recipe, takes = recipe_of(task.key, inputs)
        blocks = [held for held, _ in takes]
        with self._changed:
            while (worker := self._choose(run, task, blocks)) is None:
                if run.closed or self._closed.is_set():
                    return
                self._changed.wait(1.0)
            worker.running[task.key] = task
            self._heard = time.monotonic()
            for held in blocks:
                held.users += 1  # also if what it was postponed with is lost meanwhile
            freed, worker.freed = worker.freed, []
        given: list[Any] = []
        for held, taker in takes:
            if held.worker is worker:
                given.append(held.key)
            else:
                part = _part(run.job.plan, held.key, taker)
                given.append(held.worker.actor.export.remote(generation, held.key, *part))
        if freed and any(held.worker is not worker for held in blocks):
            worker.actor.free.remote(generation, freed)  # the call may never come if a block is lost
            freed = []
        export: Export = "keep"
        if self._is_exported(run, task.level):
            export = self._landings.reserve() if worker.near else "send"
        method = worker.actor.run if export != "send" else worker.actor.run.options(num_returns=2)
        made = method.remote(generation, recipe, task.attempt, export, freed, *given)
        told, payload = made if export == "send" else (made, export)
        call = Call(task, worker, blocks, payload)
        told.future().add_done_callback(lambda done: self._arrived(run, call, done))

    def _is_postponed(self, run: Run, task: Task) -> bool:
        """Whether a task is done with the one that takes its output: if it only shows what it takes, for one other
        task only (else each would do it anew)."""
        plan = run.job.plan
        if plan.levels[task.level].operation not in ("batch", "regroup") or self._is_exported(
            run, task.level
        ):
            return False
        first, last = plan.consumers[task.level]
        return bool(last[task.index] - first[task.index] == 1)

    def _postpone(self, run: Run, task: Task, inputs: Sequence[Output]) -> None:
        roots = {root: size for output in inputs for root, size in output.roots.items()}
        output = Postponed(task.key, inputs, roots)
        with self._changed:
            self._outputs[task.key] = output
            for block in blocks_of(inputs):
                block.users += 1
                block.worker.held.add(task.key)
        run.finished(task, Result(output), roots, cpu_s=0.0)
        self._check_kept(run, task.key, output)

    def _check_kept(self, run: Run, key: Key, output: Output) -> None:
        """Have an output made again whose worker died before the scheduler knew of the output."""
        if any(block.worker.dead for block in blocks_of([output])):
            with run.lock:
                if not run.closed and run.payloads.get(key) is output:
                    self._lose(run, [key])
                    run.work.notify_all()

    def _is_exported(self, run: Run, level: int) -> bool:
        """Whether a level's outputs go to the trainer's process."""
        levels = run.job.plan.levels
        return level + 1 == len(levels) or levels[level + 1].operation == "transfer"

    def _choose(self, run: Run, task: Task, blocks: Sequence[Held]) -> Worker | None:
        """The worker for a task: where its inputs lie, else where its window is, else the least busy."""
        alive = [worker for worker in self._workers.alive if not worker.alone]
        if self._deaths.get(task.key, 0) >= SUSPECT_AFTER:
            idle = next((worker for worker in alive if not worker.running), None)
            if idle is not None:
                idle.alone = True
            return idle
        if not alive:
            return None
        least = min(alive, key=lambda worker: len(worker.running))
        if blocks:
            holders = [held.worker for held in blocks if held.worker in alive]
            home = max(set(holders), key=holders.count) if holders else least
        else:
            group = int(run.job.plan.need[task.level][task.index])
            home = self._groups.get(group, least)
            if home not in alive:
                home = least
            self._groups[group] = home
        # A worker runs its tasks on threads, so a few more than elsewhere cost less than moving blocks.
        fair = 1 + run.scheduler.running // len(self._workers.alive)
        return least if len(home.running) > fair and len(least.running) < len(home.running) - 1 else home

    # ---- taking results --------------------------------------------------------------------------------------

    def _arrived(self, run: Run, call: Call, done: Future[Any]) -> None:
        """Called on Ray's thread: hand over to ours."""
        try:
            self._pool.submit(self._complete, run, call, done)
        except RuntimeError:
            return  # shut down: nobody waits for this any more

    def _complete(self, run: Run, call: Call, done: Future[Any]) -> None:
        task = call.task
        try:
            try:
                outcome: Outcome = done.result()
            except BaseException:
                if isinstance(call.output, Place):
                    self._landings.abandon(call.output)
                raise
            finally:
                was_alone = self._leave(call)
            if outcome.error is not None:
                if isinstance(call.output, Place):
                    self._landings.release(call.output)
                run.failed(task, raised(outcome))
            elif call.output == "keep":
                self._keep(run, task, call.worker, outcome)
            else:
                self._take(run, call, outcome)
        except self._ray.exceptions.RayError as error:
            self._lost(run, call, error, was_alone)
        except BaseException as error:
            run.failed(task, error)

    def _take(self, run: Run, call: Call, outcome: Outcome) -> None:
        """An output comes into this process."""
        if isinstance(call.output, Place):
            assert outcome.packed is not None
            size = outcome.packed.size
            memory = self._landings.take(call.output, size)
            pieces = unpack(outcome.packed, memory, own_classes=True, apart=self._landings.crowded)
            del memory
        else:
            pieces = self._ray.get(call.output)
            size = sum(block_bytes(piece.block) for piece in pieces if piece.block is not None)
        roots: dict[Any, int] = {(-1, next(self._unique)): size}
        last = call.task.level == run.last_level
        result = Result(finalize(pieces) if last else Arrived(pieces, roots), outcome.skipped)
        run.finished(call.task, result, roots, cpu_s=_book(run, call.task, outcome))

    def _keep(self, run: Run, task: Task, worker: Worker, outcome: Outcome) -> None:
        """An output stays with its worker."""
        roots = {(worker.number, root): size for root, size in outcome.roots.items()}
        output = Held(worker, (*task.key, task.attempt), roots)
        with self._changed:
            if run is not self._run:
                return  # of an epoch that was left: the next one has tasks of the same names
            worker.held.add(task.key)
            self._outputs[task.key] = output
        run.finished(task, Result(output, outcome.skipped), roots, cpu_s=_book(run, task, outcome))
        self._check_kept(run, task.key, output)

    def _leave(self, call: Call) -> bool:
        """A worker no longer runs a task; returns whether it ran it with nothing else beside it."""
        with self._changed:
            self._heard = time.monotonic()
            if call.worker.running.get(call.task.key) is call.task:  # else one of an epoch that is over
                del call.worker.running[call.task.key]
            for held in call.blocks:
                let_go(held)
            alone, call.worker.alone = call.worker.alone, False
            self._changed.notify_all()
            return alone

    def _transfer(self, run: Run, task: Task, inputs: Sequence[Arrived]) -> None:
        """Tasks of the last stage run here, in the trainer's process."""
        began = time.thread_time()
        operations = self._operations
        if operations is None:
            return
        try:
            result = operations.run(task.level, task.index, [part.pieces for part in inputs])
            result.payload = finalize(result.payload)
            roots = {root: size for part in inputs for root, size in part.roots.items()}
        except BaseException as error:
            run.failed(task, error)
            return
        run.finished(task, result, roots, cpu_s=time.thread_time() - began)

    def _lost(self, run: Run, call: Call, error: BaseException, was_alone: bool) -> None:
        """A call did not come back: its worker died, or one that held its inputs."""
        if self._closed.is_set() or run.closed:
            return
        try:
            self._workers.check_connected()
        except LoaderError as gone:
            run.end(gone)
            return
        task, worker, exceptions = call.task, call.worker, self._ray.exceptions
        absent = (exceptions.RayActorError, exceptions.ObjectLostError)  # an input that did not come
        if isinstance(error, exceptions.RayTaskError) and not isinstance(error.cause, absent):
            run.failed(task, StageError(f"{run.job.where(task.level, task.index)}: {error}"))
            return
        for holder in {held.worker for held in call.blocks} - {worker}:
            if not self._workers.lives(holder):
                self._died(holder)  # it may have nothing to do, so that nobody else would notice
        if self._workers.lives(worker):
            self._put_back(run, task)
            return
        with self._changed:
            deaths = self._deaths[task.key] = self._deaths.get(task.key, 0) + 1
        self._died(worker)
        if was_alone and deaths >= SUSPECT_AFTER + MOST_DEATHS:
            run.end(
                WorkerLostError(
                    f"{run.job.where(task.level, task.index)}: this task took its worker down {deaths} times "
                    f"(the last {MOST_DEATHS} with nothing else on it), so the job cannot go on; "
                    "look for a crash or an out-of-memory kill in the user's code, or leave that data out"
                )
            )
            return
        self._put_back(run, task)

    def _put_back(self, run: Run, task: Task) -> None:
        with run.lock:
            if not run.closed:
                run.scheduler.fail(task, run.clock())
                run.work.notify_all()

    def _free(self, keys: Sequence[Key]) -> None:
        """Outputs that nobody needs any more (called under the run's lock). A worker is told with its next task."""
        idle: list[tuple[Worker, list[Made]]] = []
        with self._changed:
            for key in keys:
                output = self._outputs.pop(key, None)
                for block in () if output is None else blocks_of([output]):
                    block.worker.held.discard(key)
                    let_go(block)
            for worker in self._workers.alive:
                if worker.freed and not worker.running:
                    idle.append((worker, worker.freed))
                    worker.freed = []
        for worker, freed in idle if self._workers.is_connected() else ():
            worker.actor.free.remote(self._workers.generation, freed)


def _book(run: Run, task: Task, outcome: Outcome) -> float:
    """Processor seconds of a task; those of tasks done with it are added to their stages."""
    others = [(level, seconds) for level, seconds in outcome.cpu_s.items() if level != task.level]
    if others:
        with run.lock:
            for level, seconds in others:
                run.scheduler.meters[run.job.plan.levels[level].stage].cpu_s += seconds
    return outcome.cpu_s.get(task.level, 0.0)


def _part(plan: Plan, made: Made, taker: Key) -> tuple[int, int]:
    """Which of an output's batches a task takes, counted from its first (means nothing where it is rows)."""
    level, index = taker
    first = int(plan.levels[made[0]].start[made[1]])
    taking = plan.levels[level]
    return int(taking.start[index]) - first, int(taking.stop[index]) - first


def _pickled(what: Any) -> bytes:
    try:
        return by_value(what)
    except Exception as error:  # whatever the user's objects do when they are pickled
        raise ConfigError(
            f"a function of the pipeline cannot be sent to Ray's workers ({type(error).__name__}: {error}); "
            "make what it uses inside it, or use executor='threads'"
        ) from error
