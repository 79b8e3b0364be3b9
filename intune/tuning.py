"""`tune`: one line around a training job's data, and its stages get the slots they need while it runs."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from intune.agents.base import Agent
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.registry import GUARDED, check_real, make
from intune.control import Controller, ControlThread, Pace, describe
from intune.decisions import Entry
from intune.envs.observer import Observer
from intune.envs.tunable import Tunable, check_tunable, give, has_pools
from intune.knowledge import Knowledge, default_folder, key_of, recall
from intune.learnt import name_of, now_and_then, remember, teach
from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget, Usable
from intune.pipelines.errors import ConfigError, IntuneError
from intune.pipelines.loader import Loader
from intune.pipelines.metrics import PipelineStats
from intune.pipelines.pipeline import Pipeline
from intune.sinks import Display, Shown, Sinks, open_sinks
from intune.tuning_arguments import (
    check_flag,
    check_knowledge,
    check_options,
    check_pace,
    check_source,
    folder_of,
    watchers,
)
from intune.tuning_resources import budget_of, resources_of

logger = logging.getLogger("intune")

LEARNT = ("dqn", "planner")
"""Agents whose changes are on trial (`Referee`): they act on what they believe of the job."""

DECIDING: weakref.WeakValueDictionary[int, Controller] = weakref.WeakValueDictionary()
"""Controllers of the loaders that are not closed, by the `id` of who decides: an agent remembers one job, and decides
for no second one meanwhile. Never iterated over: other threads tune loaders of their own."""

MOST_TOLD = 2_000
"""Characters of what a pipeline is that its log tells: a function may carry a dictionary of millions of ids."""

OFF = ("off", "0", "false", "no")
"""Values of the environment's ``INTUNE`` that turn tuning off."""


def tune(
    source: Any,
    *,
    agent: str | Agent | None = "dqn",
    cpus: int | None = None,
    memory: int | str | None = None,
    tune: bool = True,
    allocation: Allocation | Mapping[str, int] | None = None,
    pace: Pace | None = None,
    display: Display = "quiet",
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    prometheus: int | str | None = None,
    knowledge: bool | str | Path = True,
    guard: bool = True,
    watch: Callable[[Entry], None] | Sequence[Callable[[Entry], None]] = (),
    **options: Any,
) -> Tuned:
    """Make a job's input pipeline tune itself while the job runs.

    ::

        with intune.tune(pipeline, memory="8GiB") as loader:
            for batch in loader:
                train_step(batch)

    Batches and their order are what they are without tuning; only who makes them when changes.

    Args:
        source: a `Pipeline`; a `torch.utils.data.DataLoader`; or anything `Tunable` (a loader that runs already,
            an adapter of your own; where it has a method `resources` as `intune.envs.resources.ResourceReader`,
            that says what the job may use and uses).
        agent: who decides: a name of `intune.agents.registry`, an `Agent` (an instance, for this loader alone), or None
            for nobody.
        cpus: CPUs the pipeline may keep busy; by default all that the job may use, divided by the ranks on this
            machine (begun by torchrun, srun, mpirun or `torch.multiprocessing.spawn`).
        memory: bytes, or text as ``"24GiB"``, that the pipeline's blocks may hold; by default a quarter of what
            is free, divided by the ranks on this machine.
        tune: False turns tuning off, as does ``INTUNE=off`` in the environment: the batches stay the same.
        allocation: slots to begin with; by default what an earlier run learnt, else one shared pool.
        pace: seconds between decisions.
        display: ``"live"`` draws a panel, ``"lines"`` prints decisions, ``"auto"`` the first on a terminal and
            the second elsewhere; ``"quiet"`` shows nothing.
        log: folder to write decisions to, for `intune report`; None writes nothing. What an earlier run left there is
            overwritten; where another loader or rank writes meanwhile, ``loader-2``, ``loader-3``, … in it is used.
        tensorboard: folder for TensorBoard's event files (needs its package); one for every loader and rank, since
            TensorBoard draws what it finds in a folder as one curve.
        prometheus: port at which to answer with figures for Prometheus, on loopback (``"host:port"`` for another
            address; ``"ray"`` for Ray's own metrics instead); None, and nothing listens.
        knowledge: whether to begin with what an earlier run of the same pipeline on the same machine learnt and
            to keep what this one learns; or the folder to keep it in.
        guard: hold every decision within memory. Turn it off only to measure agents.
        watch: a function, or several, told of every decision, in the tuner's thread.
        **options: of the loader (`Loader`: ``executor``, ``rank``, ``world_size``, …; a DataLoader: ``workers``).

    Raises:
        ConfigError: something that cannot be tuned, or arguments that make no sense.
    """
    if display not in ("auto", "live", "lines", "quiet"):
        raise ConfigError(f"`display`={display!r} is unknown; use 'auto', 'live', 'lines' or 'quiet'")
    check_flag("tune", tune)
    check_flag("guard", guard)
    check_pace(pace)
    check_knowledge(knowledge)
    shown = Shown(
        display=display,
        log=folder_of("log", log),
        tensorboard=folder_of("tensorboard", tensorboard),
        prometheus=prometheus,
        watch=watchers(watch),
    )
    decides = _agent(agent, guard=guard, pools=has_pools(source))
    off = not tune or decides is None or os.environ.get("INTUNE", "").strip().lower() in OFF
    inner, budget = _loader(source, cpus, memory, allocation, options)
    try:
        return Tuned(
            inner,
            agent=None if off else decides,
            pace=pace,
            folder=_folder(knowledge),
            begin=allocation is None,
            name=name_of(source),
            budget=budget,
            shown=shown,
        )
    except BaseException:
        if inner is not source:  # made here, so nobody else can close it
            inner.close()
        raise


_OWN = ("loader", "controller", "_thread", "_key", "_finalizer")
"""Attributes of a `Tuned` itself."""


class Tuned:
    """A loader that is tuned while it is read: all that the loader offers, and what the tuner did.

    Use it as a context manager, or `close` it; a process that ends closes it.

    Attributes:
        loader: what is tuned.
        controller: rounds, decisions and their reasons; None where tuning is off.
    """

    def __init__(
        self,
        inner: Any,
        *,
        agent: Agent | None,
        pace: Pace | None,
        folder: Path | None,
        begin: bool,
        name: str,
        budget: Budget,
        shown: Shown,
    ) -> None:
        self.loader = inner
        self.controller: Controller | None = None
        self._thread: ControlThread | None = None
        self._key = key_of(name, tuple(inner.stages), budget.cpus, budget.memory)
        self._finalizer: Any = None
        if agent is None:
            return
        if id(_decides(agent)) in DECIDING:
            raise ConfigError(
                f"`agent` {agent.name!r} decides for another loader already, of which it remembers what it saw; make "
                "one for each loader, or close that one first"
            )
        known = None if folder is None else recall(folder, self._key, inner.stages)
        if begin:
            self._begin_with(known)
        observer = Observer(inner, resources=resources_of(inner))
        sinks = open_sinks(shown, _header(agent, name, inner.stages, budget))
        try:
            self.controller = Controller(observer, agent, inner.stages, watch=sinks.listeners)
        except BaseException:  # of an agent of the user's
            sinks.close()
            raise
        DECIDING[id(_decides(agent))] = self.controller
        if known is not None:
            teach(agent, known)
        self._thread = ControlThread(self.controller, pace=pace)
        if folder is not None:
            self.controller.tell(
                now_and_then(partial(remember, weakref.proxy(self.controller), folder, self._key))
            )
            sinks.closers.append(partial(remember, self.controller, folder, self._key))
        # The thread must not keep a forgotten loader alive, nor outlive it.
        self._finalizer = weakref.finalize(self, _end, self._thread, sinks, os.getpid())

    def _begin_with(self, known: Knowledge | None) -> None:
        if known is None:
            return
        if known.memory > Usable.detect().memory:
            logger.info(
                "what an earlier run learnt needs more memory than this job may hold; starting without it"
            )
            return
        try:
            give(self.loader, known.allocation)
        except IntuneError as error:
            logger.warning("what an earlier run learnt does not fit (%s); starting without it", error)
        else:
            logger.info("beginning with what an earlier run learnt: %s", known.allocation.as_dict())

    # ---- what a training loop uses ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        batches: Iterator[Any] = iter(self.loader)  # where this fails, there is nothing to tune
        self.start()
        return _Batches(self, batches)

    def start(self) -> None:
        """Begin to tune now: for what is not iterated over here, as a job on a cluster. A loop does it by itself."""
        if self._thread is not None:
            self._thread.start()

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # Only what this class does not have itself comes here.
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.loader, name, value)  # as it is read from there

    @property
    def stages(self) -> Sequence[str]:
        """Names of the stages, in order."""
        return tuple(self.loader.stages)

    def stats(self, **options: Any) -> PipelineStats:
        """What was measured so far."""
        read: PipelineStats = self.loader.stats(**options)
        return read

    @property
    def tuning(self) -> bool:
        """Whether allocations are being decided."""
        return self._thread is not None and self._thread.alive

    @property
    def failure(self) -> BaseException | None:
        """What ended tuning early; None where nothing did."""
        return None if self.controller is None else self.controller.failure

    @property
    def decisions(self) -> list[Entry]:
        """The last decisions, each with its reason."""
        return [] if self.controller is None else list(self.controller.entries)

    def summary(self) -> str:
        """What tuning came to, in one line."""
        return "tuning is off" if self.controller is None else describe(self.controller)

    def close(self) -> None:
        """End tuning and the loader; keep what was learnt. Twice does no harm."""
        try:
            if self._finalizer is not None:
                self._finalizer()
        finally:  # a second Ctrl-C, while a round is waited for
            close = getattr(self.loader, "close", None)
            if close is not None:
                close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a tuned loader belongs to its process; send what it was made of, and tune that there"
        )

    def __enter__(self) -> Tuned:
        if not hasattr(self.loader, "__iter__"):
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Batches(Iterator[Any]):
    """The batches of one loop. It holds on to what tunes them, which nothing else may do: ``for batch in tune(…)``."""

    def __init__(self, tuned: Tuned, batches: Iterator[Any]) -> None:
        self._tuned = tuned
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Only what this class does not have itself comes here: what the loader's own iterator offers.
        if name.startswith("__") or name in ("_tuned", "_batches"):
            raise AttributeError(name)
        return getattr(self._batches, name)


def _header(agent: Agent, name: str, stages: Sequence[str], budget: Budget) -> dict[str, Any]:
    """What a log tells of the run; read back by `intune.report`."""
    return {
        "agent": agent.name,
        "pipeline": name if len(name) <= MOST_TOLD else f"{name[: MOST_TOLD - 1]}…",
        "stages": list(stages),
        "cpus": budget.cpus,
        "memory": budget.memory,
        "began": time.time(),
    }


def _end(thread: ControlThread, sinks: Sinks, pid: int) -> None:
    if os.getpid() == pid:  # a fork has neither the thread nor a say in the log
        try:
            thread.stop()
        finally:
            sinks.close()
            DECIDING.pop(id(_decides(thread.controller.agent)), None)


def _agent(agent: str | Agent | None, *, guard: bool, pools: bool = True) -> Agent | None:
    if agent is None:
        return None
    plain = agent.removesuffix(GUARDED) if isinstance(agent, str) else ""
    if isinstance(agent, str):
        made = make(plain, learning=True, pools=pools) if plain == "dqn" else make(plain)
    elif isinstance(agent, Agent):
        made = agent
    else:
        raise ConfigError(
            f"`agent`={agent!r} must be a name, an Agent or None; use one of "
            "intune.agents.registry.names(), or an instance of a class of your own that is derived from "
            "intune.agents.base.Agent"
        )
    check_real(made.name, "agent")
    if made.name in LEARNT and not isinstance(made, Referee | Guard):
        made = Referee(made)
    asked = guard or (isinstance(agent, str) and agent.endswith(GUARDED))
    return Guard(made) if asked and not isinstance(made, Guard) else made


def _decides(agent: Agent) -> Agent:
    """The agent itself, without what is around it."""
    while isinstance(agent, Guard | Referee):
        agent = agent.agent
    return agent


def _loader(
    source: Any,
    cpus: int | None,
    memory: int | str | None,
    allocation: Allocation | Mapping[str, int] | None,
    options: dict[str, Any],
) -> tuple[Any, Budget]:
    """What is to be tuned, and its budget."""
    if isinstance(source, Tuned):
        raise ConfigError("`source` is tuned already; two tuners would undo each other's decisions")
    if isinstance(source, Pipeline):
        check_options(options, Loader.__init__, "Pipeline")
        budget = budget_of(cpus, memory, options)
        return source.loader(budget=budget, allocation=allocation, **options), budget
    if _is_dataloader(source):
        from intune.adapters.dataloader.tunable import TunableDataLoader

        check_options(options, TunableDataLoader.wrap, "DataLoader")
        budget = budget_of(cpus, memory, {"executor": "threads"})
        return TunableDataLoader.wrap(source, budget=budget, allocation=allocation, **options), budget
    check_source(source)
    if cpus is not None or memory is not None or options:
        given = [name for name, value in (("cpus", cpus), ("memory", memory)) if value is not None]
        names = ", ".join(f"`{name}`" for name in [*given, *options])
        raise ConfigError(f"{names} cannot be given with a {type(source).__name__}, which has its own budget")
    tunable: Tunable = check_tunable(source)
    if allocation is not None:
        tunable.resize(allocation)
    return tunable, tunable.budget


def _is_dataloader(source: Any) -> bool:
    from torch.utils.data import DataLoader

    return isinstance(source, DataLoader)


def _folder(knowledge: bool | str | Path) -> Path | None:
    if isinstance(knowledge, bool):
        return default_folder() if knowledge else None
    return folder_of("knowledge", knowledge)
