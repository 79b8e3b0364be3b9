"""`tune`: one line around a training job's data, and its stages get the slots they need while it runs."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from intune.agents.base import Agent
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.registry import make
from intune.control import Controller, ControlThread, Pace, describe
from intune.decisions import DecisionLog, Entry
from intune.envs.observer import Observer
from intune.envs.tunable import Tunable, check_tunable
from intune.knowledge import Knowledge, default_folder, keep, key_of, recall
from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import DEFAULT_SHARE, Budget, Usable
from intune.pipelines.errors import ConfigError, IntuneError
from intune.pipelines.metrics import PipelineStats
from intune.pipelines.pipeline import Pipeline

logger = logging.getLogger("intune")

LEARNT = ("dqn", "planner")
"""Agents whose changes are on trial (`Referee`): they act on what they believe of the job."""

OFF = ("off", "0", "false", "no")
"""Values of the environment's ``INTUNE`` that turn tuning off."""

Display = Literal["auto", "live", "lines", "quiet"]


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
    knowledge: bool | str | Path = True,
    guard: bool = True,
    watch: Sequence[Callable[[Entry], None]] = (),
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
            an adapter of your own).
        agent: who decides: a name of `intune.agents.registry`, an `Agent`, or None for nobody.
        cpus: CPUs the pipeline may keep busy; by default all that the job may use, divided by the ranks on this
            machine (``LOCAL_WORLD_SIZE``).
        memory: bytes, or text as ``"24GiB"``, that the pipeline's blocks may hold; by default a quarter of what
            is free, divided by the ranks on this machine.
        tune: False turns tuning off, as does ``INTUNE=off`` in the environment: the batches stay the same.
        allocation: slots to begin with; by default what an earlier run learnt, else one shared pool.
        pace: seconds between decisions.
        display: ``"live"`` draws a panel, ``"lines"`` prints decisions, ``"auto"`` the first on a terminal and
            the second elsewhere; ``"quiet"`` shows nothing.
        log: folder to write decisions to, for `intune report`; None writes nothing.
        knowledge: whether to begin with what an earlier run of the same pipeline on the same machine learnt and
            to keep what this one learns; or the folder to keep it in.
        guard: hold every decision within memory. Turn it off only to measure agents.
        watch: functions told of every decision, in the tuner's thread.
        **options: of the loader (`Loader`: ``executor``, ``rank``, ``world_size``, …; a DataLoader: ``workers``).

    Raises:
        ConfigError: something that cannot be tuned, or arguments that make no sense.
    """
    if display not in ("auto", "live", "lines", "quiet"):
        raise ConfigError(f"`display`={display!r} is unknown; use 'auto', 'live', 'lines' or 'quiet'")
    if not isinstance(tune, bool):
        raise ConfigError(f"`tune`={tune!r} must be True or False")
    decides = _agent(agent, guard=guard)
    off = not tune or decides is None or os.environ.get("INTUNE", "").strip().lower() in OFF
    inner, budget = _loader(source, cpus, memory, allocation, options)
    return Tuned(
        inner,
        agent=None if off else decides,
        pace=pace,
        display=display,
        log=None if log is None else Path(log),
        folder=_folder(knowledge),
        begin=allocation is None,
        name=_name(source),
        budget=budget,
        watch=watch,
    )


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
        display: Display,
        log: Path | None,
        folder: Path | None,
        begin: bool,
        name: str,
        budget: Budget,
        watch: Sequence[Callable[[Entry], None]],
    ) -> None:
        self.loader = inner
        self.controller: Controller | None = None
        self._thread: ControlThread | None = None
        self._closers: list[Callable[[], None]] = []
        self._folder = folder
        self._key = key_of(name, tuple(inner.stages), budget.cpus, budget.memory)
        self._finalizer: Any = None
        if agent is None:
            return
        known = recall(folder, self._key, inner.stages) if folder is not None and begin else None
        if known is not None:
            logger.info("beginning with what an earlier run learnt: %s", known.allocation.as_dict())
            inner.resize(known.allocation)
        listeners = [*watch, *self._sinks(display, log, agent, name, budget)]
        observer = Observer(inner)
        self.controller = Controller(observer, agent, inner.stages, watch=listeners)
        self._thread = ControlThread(self.controller, pace=pace)
        # The thread must not keep a forgotten loader alive, nor outlive it.
        self._finalizer = weakref.finalize(self, _end, self._thread, self._closers)

    def _sinks(
        self, display: Display, log: Path | None, agent: Agent, name: str, budget: Budget
    ) -> list[Callable[[Entry], None]]:
        sinks: list[Callable[[Entry], None]] = []
        if log is not None:
            header = {
                "agent": agent.name,
                "pipeline": name,
                "stages": list(self.loader.stages),
                "cpus": budget.cpus,
                "memory": budget.memory,
                "began": time.time(),
            }
            written = DecisionLog(log / "decisions.jsonl", header=header)
            sinks.append(written.add)
            self._closers.append(written.close)
        if display != "quiet":
            from intune.tuning_display import TuningDisplay

            shown = TuningDisplay(mode=display)
            sinks.append(shown)
            self._closers.append(shown.close)
        return sinks

    # ---- what a training loop uses ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        if self._thread is not None:
            self._thread.start()
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # Only what this class does not have itself comes here.
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

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
    def decisions(self) -> list[Entry]:
        """The last decisions, each with its reason."""
        return [] if self.controller is None else list(self.controller.entries)

    def summary(self) -> str:
        """What tuning came to, in one line."""
        return "tuning is off" if self.controller is None else describe(self.controller)

    def close(self) -> None:
        """End tuning and the loader; keep what was learnt. Twice does no harm."""
        if self._finalizer is not None:
            self._finalizer()
            self._remember()
        close = getattr(self.loader, "close", None)
        if close is not None:
            close()

    def _remember(self) -> None:
        best = None if self.controller is None else self.controller.best
        if best is None or self._folder is None:
            return
        allocation, rate, memory = best
        keep(
            self._folder,
            self._key,
            Knowledge(allocation=replace(allocation, memory=None), rate=rate, memory=memory),
        )

    def __enter__(self) -> Tuned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(thread: ControlThread, closers: list[Callable[[], None]]) -> None:
    thread.stop()
    for close in closers:
        with contextlib.suppress(IntuneError, OSError):
            close()


def _agent(agent: str | Agent | None, *, guard: bool) -> Agent | None:
    if agent is None:
        return None
    if isinstance(agent, str):
        made = make(agent, learning=True) if agent == "dqn" else make(agent)
    elif isinstance(agent, Agent):
        made = agent
    else:
        raise ConfigError(
            f"`agent` must be a name, an Agent or None, but {type(agent).__name__} was given; "
            "see intune.agents.registry.names()"
        )
    if made.name == "oracle":
        raise ConfigError("`agent`='oracle' knows a simulator's own parameters; a real job has none")
    if isinstance(agent, str) and agent in LEARNT:
        made = Referee(made)
    return Guard(made) if guard and not isinstance(made, Guard) else made


def _loader(
    source: Any,
    cpus: int | None,
    memory: int | str | None,
    allocation: Allocation | Mapping[str, int] | None,
    options: dict[str, Any],
) -> tuple[Any, Budget]:
    """What is to be tuned, and its budget."""
    if isinstance(source, Pipeline):
        budget = _budget(cpus, memory)
        return source.loader(budget=budget, allocation=allocation, **options), budget
    if _is_dataloader(source):
        from intune.adapters.dataloader import TunableDataLoader

        budget = _budget(cpus, memory)
        return TunableDataLoader.wrap(source, budget=budget, allocation=allocation, **options), budget
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


def _budget(cpus: int | None, memory: int | str | None) -> Budget:
    """A rank's part of what the machine offers, where nothing is said."""
    ranks = _ranks_here()
    usable = Usable.detect()
    if cpus is None and ranks > 1:
        cpus = max(1, usable.cpus // ranks)
    return Budget.detect(cpus=cpus, memory=memory, share=DEFAULT_SHARE / ranks, usable=usable)


def _ranks_here() -> int:
    """Trainers on this machine, as torchrun, Lightning and Ray Train say it."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def _folder(knowledge: bool | str | Path) -> Path | None:
    if isinstance(knowledge, bool):
        return default_folder() if knowledge else None
    return Path(knowledge)


def _name(source: Any) -> str:
    """What a pipeline is, for finding what an earlier run of it learnt."""
    if isinstance(source, Pipeline):
        return repr(source)
    dataset = getattr(source, "dataset", source)
    return f"{type(source).__qualname__}({type(dataset).__qualname__}, {getattr(source, 'batch_size', None)})"
