"""A loader's worker processes on Ray: how many, started, told the job, asked whether they live, replaced, ended.

Nothing is known here of tasks and what they make; that is `ray.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError, LoaderError, WorkerLostError
from intune.pipelines.executors.landing import Landings
from intune.pipelines.executors.ray_cluster import (
    capturing_group,
    connect,
    connection,
    disconnect,
    free_cpus,
    started_here,
)
from intune.pipelines.executors.ray_records import Worker
from intune.pipelines.executors.ray_worker import MOST_THREADS, Functions, RayWorker

logger = logging.getLogger("intune")

MOST_STARTS = 5
"""Workers started in vain, one after another, before the job fails."""

ROOM_PATIENCE = 8.0
"""Seconds to wait for a free CPU on the cluster before saying that there is none."""

END_PATIENCE = 5.0
"""Seconds to wait for killed workers of this machine to be gone."""

START_PATIENCE = 600.0
"""Seconds to wait for the cluster to start a worker where there is none yet: a node may have to boot, or to install the
environment that the user's `runtime_env` wants, for which Ray itself allows as long."""

NOTICE_S = 60.0
"""Seconds of waiting for a worker after which it is said what for; and for an answer of one that has started."""


class RayWorkers:
    """One process per CPU of the budget, as far as the cluster has room.

    Args:
        budget: CPUs and memory the pipeline may use.
        landings: this process's segments, which workers on the same machine can reach.
        none_left: told why, when the last worker is gone and none could be started in its place.

    Attributes:
        alive: those that may be given tasks, once the first of them have come.
        lost: how many died.
        generation: number of the job they were told last.
        changed: notified when there is another worker; its lock guards everything here, and the tables of the fleet
            that gives them tasks.

    Raises:
        ConfigError: the cluster has no room for a worker.
    """

    def __init__(self, budget: Budget, landings: Landings, none_left: Callable[[Exception], None]) -> None:
        self.ray = connect(budget)
        self.alive: list[Worker] = []
        self.lost = 0
        self.generation = 0
        self.changed = threading.Condition(threading.RLock())
        self._landings = landings
        self._none_left = none_left
        self._connection = connection(self.ray)
        # There each loader has what its budget says, as on threads: else the first would leave a second no processor.
        self._books = not started_here(self._connection)
        self._group: Any = None  # the placement group they run in
        self._numbers = itertools.count()
        self._starting: dict[threading.Thread, Worker | None] = {}  # in the place of those that died
        # The job, and the functions, as they lie in Ray's store.
        self._told: tuple[Any, Functions] | None = None
        self._closed = False
        try:
            self._begin(self._size(budget))
        except BaseException:
            self.close()
            raise

    # ---- Ray itself ------------------------------------------------------------------------------------------

    def is_connected(self) -> bool:
        """Whether the Ray that the workers belong to is at hand still. Else it must not be called: it would start
        another one."""
        return connection(self.ray) == self._connection

    def check_connected(self) -> None:
        """A `LoaderError` if Ray was shut down."""
        if not self.is_connected():
            raise LoaderError(
                "Ray was shut down since the loader was made, and its workers with it; make a new loader, and close "
                "it before ray.shutdown()"
            )

    def pids(self) -> list[int]:
        """Worker processes on this machine."""
        here = self._node()
        with self.changed:
            return [worker.pid for worker in self.alive if worker.node == here]

    def hold_all(self) -> bool:
        """Whether nothing else can start where they run."""
        return self._books and not free_cpus(self.ray, self._group)

    def _node(self) -> str:
        """This machine's node; empty for a client (``ray://``), which is told of the one that its server runs on."""
        if not self.ray.is_initialized() or self.ray.util.client.ray.is_connected():
            return ""
        return str(self.ray.get_runtime_context().get_node_id())

    # ---- what the fleet calls --------------------------------------------------------------------------------

    def take_up(self, job: bytes, functions: bytes) -> int:
        """Another job from now on, its functions apart; returns its number. Those that are there must be told with
        `brief`; whoever comes later is told when it comes."""
        digest = hashlib.blake2b(functions, digest_size=16).digest()
        with self.changed:
            if self._told is None or self._told[1].digest != digest:
                made = Functions(digest, [self.ray.put(functions)])
            else:
                made = self._told[1]
            self._told = self.ray.put(job), made
            self.generation += 1
            return self.generation

    def brief(self, workers: Sequence[Worker]) -> list[Worker]:
        """Tell workers the job, all at the same time; they must know before their first task.

        Returns:
            Those that are gone.

        Raises:
            ConfigError: a function of the pipeline cannot be loaded there.
        """
        with self.changed:
            generation, told = self.generation, self._told
        calls = [(worker, worker.actor.begin.remote(generation, *told)) for worker in workers if told]
        gone = []
        for worker, call in calls:
            try:
                self._await_told(call)
            except self.ray.exceptions.RayActorError:
                gone.append(worker)
        return gone

    def end_job(self, generation: int) -> None:
        """Nobody wants what is made for a job any more: the workers let go of what they keep for it."""
        with self.changed:
            workers = list(self.alive)
        for worker in workers if self.is_connected() else ():
            worker.actor.end.remote(generation)

    def lives(self, worker: Worker) -> bool:
        """Whether a worker answers."""
        if worker.dead:
            return False
        try:
            self.ray.get(worker.actor.hello.remote(), timeout=NOTICE_S)
        except self.ray.exceptions.RayError:
            return False
        return True

    def gone(self, worker: Worker) -> None:
        """A worker died."""
        with self.changed:
            worker.dead = True
            self.alive.remove(worker)
            self.lost += 1

    def replace(self, late: Worker | None = None) -> None:
        """Have a new worker in the place of a dead one, or `late`, which has yet to come, in a thread of its own:
        the others go on meanwhile."""
        thread = threading.Thread(target=self._replace, name="intune-ray-starter", daemon=True)
        with self.changed:
            self._starting[thread] = late
            thread.start()  # who finds it there may wait for its end

    def have_one(self) -> None:
        """Start a worker if there is none and none is on its way: the last was lost while nobody needed it."""
        with self.changed:
            none = not (self.alive or self._starting)
        if none:
            self.replace()

    def close(self) -> None:
        """End all, and the Ray started here if no other loader uses it."""
        with self.changed:
            if self._closed:
                return
            self._closed = True
            self._told = None  # else the functions stay in Ray's store as long as anyone has the loader
            workers, self.alive = self.alive, []
            starting = list(self._starting)
            workers += [worker for worker in self._starting.values() if worker is not None]
            self.changed.notify_all()
        try:
            self._end(workers, starting)
        finally:
            disconnect(self.ray, self._connection)  # also if a second Ctrl-C ends the waiting

    def _end(self, workers: Sequence[Worker], starting: Sequence[threading.Thread]) -> None:
        here = self._node()
        pids = [worker.pid for worker in workers if worker.pid and worker.node == here]
        if self.is_connected():
            for worker in workers:
                self.ray.kill(worker.actor, no_restart=True)
        deadline = time.monotonic() + END_PATIENCE
        for thread in starting:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)

    # ---- starting them ---------------------------------------------------------------------------------------

    def _begin(self, count: int) -> None:
        """Start the first workers. Ranks that begin at the same time all find the same room: where it does not do
        for all workers of this one, go on with those that came; the others come when there is room."""
        probe, segment = self._landings.probe()
        try:
            self.alive = [self._spawn() for _ in range(count)]
            calls = {worker.actor.hello.remote(probe): worker for worker in self.alive}
            came, late = self._await_first(list(calls))
            if late and came:
                came, late = self.ray.wait(list(calls), num_returns=count, timeout=ROOM_PATIENCE)
            if not came:
                raise _no_room()
            for call in came:
                calls[call].welcome(self.ray.get(call))
        except self.ray.exceptions.RayError as error:  # of the actor, or what keeps it from ever becoming one
            raise ConfigError(
                f"a Ray worker could not be started: {_last_line(error)}; this package and what the pipeline imports "
                "must be there on every node of the cluster, or come with the runtime_env, which must be one that "
                "the nodes can set up"
            ) from error
        finally:
            segment.close()
        self.alive = [calls[call] for call in came]
        if late:
            logger.warning(
                "beginning with %d of %d Ray workers; others join when the cluster has room and has started them",
                len(came),
                count,
            )
        for call in late:
            self.replace(calls[call])

    def _await_first(self, calls: list[Any]) -> tuple[list[Any], list[Any]]:
        """Those of the calls to the first workers that came, one at least if there is any in time, and the others."""
        waited = 0.0
        while True:
            came, late = self.ray.wait(calls, timeout=NOTICE_S)
            waited += NOTICE_S
            if came or waited >= START_PATIENCE:
                return came, late
            logger.warning(
                "no Ray worker has started in %.0f s: the cluster may have no free CPU any more, or a node have yet to "
                "start or to install what the job wants; going on to wait, up to %.0f s",
                waited,
                START_PATIENCE,
            )

    def _size(self, budget: Budget) -> int:
        """How many workers there is room for: in the placement group of whoever makes the loader, else, where all of
        that is taken, in the cluster. Waits a little, since CPUs just let go are booked late."""
        if not self._books:
            return budget.cpus
        all_of_it = int(self.ray.cluster_resources().get("CPU", 0))
        if not all_of_it:
            logger.warning(
                "the Ray cluster has no CPU yet: asking for %d, and waiting for nodes", budget.cpus
            )
            return budget.cpus  # one that scales from nothing starts nodes for those who ask
        group = capturing_group(self.ray)
        wanted = min(budget.cpus, all_of_it)
        began = time.monotonic()
        while True:
            if group is not None and (have := free_cpus(self.ray, group)):
                self._group = group
                return min(budget.cpus, have)
            have = free_cpus(self.ray)
            waited = time.monotonic() - began
            if have >= wanted or (have >= 1 and waited > ROOM_PATIENCE / 4):
                return min(wanted, have)
            if waited > ROOM_PATIENCE:
                raise ConfigError(
                    "the Ray cluster has no free CPU for a worker; close the loader that has them, or give it fewer "
                    "(`cpus` of its budget), or use executor='threads'"
                )
            time.sleep(0.02)

    def _spawn(self) -> Worker:
        options: dict[str, Any] = {
            "num_cpus": 1 if self._books else 0,
            "max_concurrency": MOST_THREADS,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        if self._group is not None:
            # Said here, since a thread that starts another worker is not known to run in it.
            strategies = self.ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.PlacementGroupSchedulingStrategy(
                self._group, placement_group_capture_child_tasks=True
            )
        number = next(self._numbers)
        actor = self.ray.remote(RayWorker).options(**options).remote(number)
        return Worker(number=number, actor=actor)

    def _introduce(self, worker: Worker) -> None:
        probe, segment = self._landings.probe()
        try:
            worker.welcome(self.ray.get(worker.actor.hello.remote(probe), timeout=NOTICE_S))
        except self.ray.exceptions.GetTimeoutError:
            raise _no_room() from None
        finally:
            segment.close()

    def _await_told(self, call: Any) -> None:
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise ConfigError(
                f"a function of the pipeline cannot be loaded by Ray's workers ({type(cause).__name__}: {cause}); "
                "let them import its module (runtime_env in ray.init), or use executor='threads'"
            ) from cause

    def _replace(self) -> None:
        """Start a worker; if it dies at once, another, a few times. Where the cluster has no room, since a node is
        gone, wait for it as long as there are others."""
        thread = threading.current_thread()
        try:
            for _ in range(MOST_STARTS):
                with self.changed:
                    if self._closed or not self.is_connected():
                        return
                    fresh = self._starting[thread] = self._starting[thread] or self._spawn()
                try:
                    self._await_room(fresh)
                    self._admit(fresh)
                except self.ray.exceptions.RayActorError as error:
                    why = _last_line(error)
                    with self.changed:
                        self._starting[thread] = None
                    continue
                return
            raise WorkerLostError(f"{MOST_STARTS} in a row died, the last: {why}")
        except Exception as error:
            self._not_replaced(error)
        finally:
            with self.changed:
                del self._starting[thread]

    def _await_room(self, fresh: Worker) -> None:
        alone = 0.0
        for time_out in itertools.count(1):
            others = bool(self.alive)  # one that died just now may soon be replaced
            try:
                return self._introduce(fresh)
            except ConfigError as error:
                alone = 0.0 if others or self.alive else alone + NOTICE_S
                if alone >= START_PATIENCE:
                    raise
                if time_out == 1:
                    logger.warning("going on with %d Ray worker(s): %s", len(self.alive), error)

    def _admit(self, fresh: Worker) -> None:
        """Let a new worker have tasks once it knows the job, also if that changed meanwhile."""
        while True:
            with self.changed:
                generation, told = self.generation, self._told
            if told is not None:
                self._await_told(fresh.actor.begin.remote(generation, *told))
            with self.changed:
                if self._closed:
                    return  # which killed it
                if generation == self.generation:
                    self.alive.append(fresh)
                    self.changed.notify_all()
                    return

    def _not_replaced(self, error: Exception) -> None:
        with self.changed:
            if self._closed:
                return
            last = not self.alive
        if last:
            self._none_left(error)
        else:
            logger.warning("a Ray worker died and none could be started in its place: %s", error)


def _no_room() -> ConfigError:
    return ConfigError(
        "the Ray cluster has not started a worker in time; free CPUs on it, see to the runtime_env, if there is one, "
        "or use executor='threads'"
    )


def _last_line(error: BaseException) -> str:
    """What Ray's long account of a death ends with: what it was."""
    return str(error).rstrip().rsplit("\n", 1)[-1].strip()
