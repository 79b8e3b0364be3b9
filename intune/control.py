"""The control loop: measure, decide, apply, write down. In a thread of its own, beside a training loop it never breaks.

`Controller.step` does one round and knows no thread; `ControlThread` calls it at intervals that adapt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.agents.base import Agent, Decision
from intune.decisions import Entry
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError, IntuneError

logger = logging.getLogger("intune")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds between decisions.

    Attributes:
        shortest: at the beginning and after every change: tasks take tens of milliseconds, so a second shows
            dozens.
        longest: once nothing changes: a settled job is looked at often enough to follow a machine that changes.
        growth: by which a quiet interval is longer than the one before.
        tasks: finished tasks that the slowest stage should show before a decision is made.

    Raises:
        ConfigError: numbers out of order.
    """

    shortest: float = 1.0
    longest: float = 10.0
    growth: float = 1.3
    tasks: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest < float("inf"):
            raise ConfigError(
                f"`shortest`={self.shortest!r} and `longest`={self.longest!r} must be seconds, the first no longer"
            )
        if not self.growth >= 1.0 or self.tasks < 0:
            raise ConfigError(
                f"`growth`={self.growth!r} must be 1 or more and `tasks`={self.tasks!r} 0 or more"
            )

    def after(self, seconds: float, *, changed: bool) -> float:
        """The next interval."""
        return self.shortest if changed else min(self.longest, seconds * self.growth)


KEPT = 256
"""Decisions kept in memory for displays; the log has all."""


class Controller:
    """Rounds of tuning for one pipeline.

    Args:
        observer: measures the pipeline and applies allocations.
        agent: decides; already guarded, if it is to be.
        stages: names of the pipeline's stages.
        watch: told of every entry.
        clock: seconds, monotonic.

    Attributes:
        entries: the last decisions.
        best: allocation that delivered most, its rows/s and the memory it took; None before the first.
    """

    def __init__(
        self,
        observer: Observer,
        agent: Agent,
        stages: Sequence[str],
        *,
        watch: Sequence[Callable[[Entry], None]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.observer = observer
        self.agent = agent
        self.stages = tuple(stages)
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.best: tuple[Allocation, float, float] | None = None
        self.rounds = 0
        self._watch = tuple(watch)
        self._clock = clock
        self._began = clock()
        agent.start(1, len(self.stages))

    def step(self) -> bool:
        """One round; whether something changed.

        Raises:
            IntuneError: the pipeline is over.
        """
        measured = self.observer.measure()
        allocation = self.observer.allocation
        decision = self._decide(measured)
        if decision.allocation is not None:
            self.observer.resize(decision.allocation)
        self._note(measured, allocation, decision)
        return decision.allocation is not None

    def _decide(self, measured: Measurement) -> Decision:
        decision = self.agent.decide(measured, self.stages)
        if decision.allocation is not None and not isinstance(decision.allocation, Allocation):
            raise ConfigError(
                f"agent {self.agent.name!r} decided {decision.allocation!r}; it must give an Allocation or None"
            )
        return decision

    def _note(self, measured: Measurement, allocation: Allocation, decision: Decision) -> None:
        self.rounds += 1
        rate = float(measured.delivered[0])
        memory = float(np.nan_to_num(measured.memory_used[0]))
        if measured.sound()[0] and (self.best is None or rate > self.best[1]):
            self.best = (allocation, rate, memory)
        entry = Entry(
            time=self._clock() - self._began,
            stages=self.stages,
            measured=measured,
            allocation=allocation,
            decided=decision.allocation,
            reason=decision.reason,
        )
        self.entries.append(entry)
        for tell in self._watch:
            tell(entry)


class ControlThread:
    """Calls a controller until it is stopped. Whatever fails is logged once, and the pipeline stays as it is.

    Args:
        controller: does the rounds.
        pace: how often.
        active: whether an epoch is under way; rounds wait for one.
    """

    def __init__(
        self, controller: Controller, *, pace: Pace | None = None, active: Callable[[], bool] = lambda: True
    ) -> None:
        self.controller = controller
        self.pace = pace if pace is not None else Pace()
        self.failure: BaseException | None = None
        self._active = active
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether tuning goes on."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="intune-tuner", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and wait until it has; twice does no harm."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        seconds = self.pace.shortest
        try:
            while not self._stop.wait(seconds):
                if not self._active():
                    self.controller.observer.skip()
                    continue
                changed = self.controller.step()
                seconds = self.pace.after(seconds, changed=changed)
        except IntuneError as error:
            self._failed(error)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if self._stop.is_set():
            return
        self.failure = error
        logger.warning(
            "tuning stopped (%s: %s); training goes on with the allocation in force",
            type(error).__name__,
            error,
            exc_info=not isinstance(error, IntuneError),
        )


def describe(controller: Any) -> str:
    """What tuning came to, in one line."""
    if controller.best is None:
        return "nothing was decided: the job was over before its first interval"
    allocation, rate, _ = controller.best
    slots = ", ".join(f"{name} {count}" for name, count in allocation.as_dict().items())
    return f"{controller.rounds} decisions; most delivered: {rate:,.0f} rows/s with {slots}"
