"""The control loop: measure, decide, apply, write down. In a thread of its own, beside a training loop it never breaks.

`Controller.step` does one round and knows no thread; `ControlThread` calls it at intervals that adapt.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.absence import Absence
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
        first: from the first batch to the first decision, where it is less than `shortest`: what is wrong at the
            beginning is most wrong.
        tasks: finished tasks that every stage at work should show before a decision is made; an interval is at
            most three times as long for it.

    Raises:
        ConfigError: numbers out of order.
    """

    shortest: float = 1.0
    longest: float = 10.0
    growth: float = 1.3
    first: float = 0.5
    tasks: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.first < float("inf"):
            raise ConfigError(f"`first`={self.first!r} must be seconds above 0")
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


COST = 0.01
"""Share of one processor's time that tuning may take in the long run; the intervals grow where a round costs more."""

CREDIT_S = 2.0
"""Processor seconds that it may take beyond that: at the beginning, where rounds bring most."""

BEGINNING_S = 0.1
"""Seconds between two looks whether the first batch is out: what happens before it says nothing of any allocation."""

PATIENCE = 2
"""Times that a round is put off because a stage has finished too few tasks to be judged, or the trainer was away."""

MEASURED = 0.5
"""Part of an interval that has to lie within epochs: in what was seen of an epoch's last or first moments alone, a good
change is a bad one. What is less becomes a part of the next interval, so a validation is no quiet interval either."""

LOOKS = 8
"""Looks in an interval whether the trainer is away: what it lost by then, an eighth at most, remains part of it."""

HALT_S = 1.0
"""Seconds by which a wait is longer than it should be from which on the job as a whole stood still (stopped, as
by a scheduler that gives its processors to another; its control group frozen; its machine paused)."""

SETTLING = 2.0
"""Times the shortest interval that is waited at most, after a change, for what was under way."""

LUCK = 0.1
"""Share of its mean by which one interval's rate may be luck; of n intervals' mean, 1/√n of it."""

FAULTY = 3
"""Intervals in a row that were none, since a counter fell or is no number, from which on that is said: a pipeline that
begins to count anew is no fault."""

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
        best: allocation that delivered most on average, less what may be luck, its mean rows/s and the most memory it
            took; None before the first.
        failure: that ended tuning; None while there was none.
        fault: of the pipeline's counters, for which nothing is decided; empty where there is none.
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
        self.failure: BaseException | None = None
        self.fault = ""
        self._faults = 0
        self._delivered: dict[Allocation, _Delivered] = {}
        self.rounds = 0
        self.changes = 0
        self._watch = list(watch)
        self._over = False
        self._clock = clock
        self._began = clock()
        agent.start(1, len(self.stages))

    def step(self) -> bool:
        """One round; whether something changed. An interval in which no epoch was under way is passed over.

        Raises:
            IntuneError: the pipeline is over.
            BaseException: whatever the agent raises; an entry says so, and the slots that delivered most are given.
        """
        measured = self.observer.measure()
        if measured.interval[0] <= 0:
            self._heed(self.observer.fault)
            return False
        self._faults = 0
        allocation = self.observer.allocation
        try:
            decision = self._decide(measured)
        except BaseException as error:
            if self._over:
                raise
            # The last entry says what ended tuning, and what is in force from then on.
            reason = f"tuning stopped: {type(error).__name__}: {error}"
            self.failure = error
            self._note(measured, allocation, Decision(allocation=self.retreat(), reason=reason))
            raise
        if self._over:
            return False
        if decision.allocation is not None:
            self.observer.resize(decision.allocation)
            decision = self._carried_out(decision, decision.allocation, allocation)
        self._note(measured, allocation, decision)
        return decision.allocation is not None

    def _carried_out(self, decision: Decision, asked: Allocation, before: Allocation) -> Decision:
        """The decision as the pipeline took it, which may give fewer slots than it is asked for."""
        given = self.observer.allocation
        reason = decision.reason
        if given.as_dict() != before.merged(asked, self.stages).as_dict():
            reason += f"; the pipeline gave {in_words(given)}"
        return Decision(allocation=None if given == before else given, reason=reason)

    def _heed(self, fault: str) -> None:
        """Say, once, why nothing is decided."""
        self._faults = self._faults + 1 if fault else 0
        if self._faults == FAULTY and not self.fault:
            self.fault = fault
            logger.warning(
                "nothing can be decided on what `stats()` of a %s counts: %s; give counters that only grow, from when "
                "it was made (see intune.pipelines.metrics)",
                type(self.observer.tunable).__name__,
                fault,
            )

    def tell(self, listener: Callable[[Entry], None]) -> None:
        """Tell it, too, of every entry from now on."""
        self._watch.append(listener)

    def end(self) -> None:
        """A round that is still under way gives no slots any more, and nobody is told of it."""
        self._over = True

    def retreat(self) -> Allocation | None:
        """Give the slots that delivered most, after a failure; None where nothing is known to be better."""
        if self.best is None or self.best[0] == self.observer.allocation:
            return None
        self.observer.resize(self.best[0])
        return self.best[0]

    def _decide(self, measured: Measurement) -> Decision:
        decision: Any = self.agent.decide(measured, self.stages)
        if not isinstance(decision, Decision) or not isinstance(decision.reason, str):
            raise ConfigError(
                f"agent {self.agent.name!r} decided {decision!r}; `decide` must return an intune.agents.base.Decision "
                "with a reason in words"
            )
        if decision.allocation is not None and not isinstance(decision.allocation, Allocation):
            raise ConfigError(
                f"agent {self.agent.name!r} decided {decision.allocation!r}; it must give an Allocation or None"
            )
        return decision

    def _note(self, measured: Measurement, allocation: Allocation, decision: Decision) -> None:
        self.rounds += 1
        self.changes += decision.allocation is not None
        if measured.sound()[0]:
            self._judge(measured, allocation)
        entry = Entry(
            time=self._clock() - self._began,
            stages=self.stages,
            measured=measured,
            allocation=allocation,
            decided=decision.allocation,
            reason=decision.reason,
        )
        self.entries.append(entry)
        for tell in tuple(self._watch):
            if self._over:  # one of them has closed the loader, and with it the others
                return
            try:
                tell(entry)
            except Exception as error:
                # Whoever only looks on must not end what it looks at.
                self._watch.remove(tell)
                logger.warning(
                    "%r failed (%s: %s) and is told of no more decisions", tell, type(error).__name__, error
                )

    def _judge(self, measured: Measurement, allocation: Allocation) -> None:
        # By all its intervals: the highest of many single ones is luck.
        before = self._delivered.pop(allocation, _Delivered())
        interval = float(measured.interval[0])
        self._delivered[allocation] = _Delivered(
            intervals=before.intervals + 1,
            seconds=before.seconds + interval,
            rows=before.rows + interval * float(measured.delivered[0]),
            memory=max(before.memory, float(np.nan_to_num(measured.memory_used[0]))),
        )
        while len(self._delivered) > KEPT:
            del self._delivered[next(iter(self._delivered))]
        best = max(self._delivered, key=lambda given: self._delivered[given].trusted)
        self.best = (best, self._delivered[best].rate, self._delivered[best].memory)


@dataclass(frozen=True, kw_only=True)
class _Delivered:
    """What an allocation has delivered in all its intervals, and the most memory it took in one."""

    intervals: int = 0
    seconds: float = 0.0
    rows: float = 0.0
    memory: float = 0.0

    @property
    def rate(self) -> float:
        return self.rows / self.seconds

    @property
    def trusted(self) -> float:
        return self.rate * (1 - LUCK / math.sqrt(self.intervals))


class ControlThread:
    """Calls a controller until it is stopped. Whatever fails is logged once, and the pipeline goes on.

    Args:
        controller: does the rounds.
        pace: how often.
        patience: seconds that `stop` waits for a round that does not end (a pipeline that does not answer).
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        pace: Pace | None = None,
        patience: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.controller = controller
        self.pace = pace if pace is not None else Pace()
        self._patience = patience
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether tuning goes on."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; once."""
        if self._thread is None and self.controller.failure is None:
            thread = threading.Thread(target=self._run, name="intune-tuner", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system allows no more threads
                self._failed(error)
            else:
                self._thread = thread

    def stop(self) -> None:
        """End, and wait until it has; twice does no harm. What a round that does not end comes to is nothing."""
        self._stop.set()
        try:
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(timeout=self._patience)
        finally:
            self.controller.end()

    def _run(self) -> None:
        try:
            self._rounds()
        except BaseException as error:
            # SystemExit too: an agent's `exit()` would end the thread without a word.
            self._failed(error)

    def _rounds(self) -> None:
        thrift = Thrift()
        observer = self.controller.observer
        if not self._begun(thrift):
            return
        seconds = min(self.pace.first, self.pace.shortest)
        put_off = 0
        absence = Absence(lambda: observer.tunable.stats())
        while self._passed(thrift.interval(seconds), absence):
            if 0 <= observer.elapsed() < MEASURED * seconds:
                continue
            if put_off < PATIENCE and observer.tasks() < self.pace.tasks:
                put_off += 1
                continue
            put_off = 0
            changed = self.controller.step()
            seconds = self.pace.after(seconds, changed=changed)
            if changed:
                # What was under way is of the allocation before.
                if self._stop.wait(min(observer.passage(), SETTLING * self.pace.shortest)):
                    return
                observer.skip()

    def _passed(self, seconds: float, absence: Absence) -> bool:
        """Wait for an interval; False where the end comes first. It begins anew when the trainer leaves and when it is
        back, so that it has no part in its absence, and after a halt, unless they come and go all the time."""
        looks = begun = 0
        while looks < LOOKS:
            since = self._clock()
            if self._stop.wait(seconds / LOOKS):
                return False
            looks += 1
            halted = self._clock() - since > seconds / LOOKS + HALT_S
            if (absence.look() or halted) and begun < 2 * PATIENCE:
                self.controller.observer.skip()
                looks, begun = 0, begun + 1
        return True

    def _begun(self, thrift: Thrift) -> bool:
        """Wait for the first batch, from which the first interval counts; whether it came before the end."""
        while not self.controller.observer.begun():
            if self._stop.wait(thrift.interval(min(BEGINNING_S, self.pace.shortest))):
                return False
        self.controller.observer.skip()
        return True

    def _failed(self, error: BaseException) -> None:
        if self._stop.is_set():
            return
        if self.controller.failure is None:
            self.controller.failure = error
            with contextlib.suppress(Exception):  # the pipeline itself may be what failed
                self.controller.retreat()
        logger.warning(
            "tuning stopped (%s: %s); training goes on with the last good allocation",
            type(error).__name__,
            error,
            exc_info=None if isinstance(error, IntuneError) else error,
        )


class Thrift:
    """Keeps tuning to `COST` of a processor: a round that costs more is followed by a longer interval.

    Args:
        clock: seconds, monotonic.
        spent: processor seconds of this thread so far.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self._spent = spent
        self._began = clock()
        self._before = spent()

    def interval(self, seconds: float) -> float:
        """Seconds to wait where `seconds` are wished for."""
        allowed = CREDIT_S + COST * (self._clock() - self._began + seconds)
        beyond = self._spent() - self._before - allowed
        return seconds + max(0.0, beyond) / COST


def describe(controller: Controller) -> str:
    """What tuning came to, in one line."""
    rounds, failure = controller.rounds, controller.failure
    came_to = f"{rounds:,} decision{'' if rounds == 1 else 's'}"
    if controller.best is not None:
        allocation, rate, _ = controller.best
        came_to += f"; most delivered: {rate:,.0f} rows/s with {in_words(allocation)}"
    elif any(entry.measured.delivered[0] > 0 for entry in tuple(controller.entries)):
        came_to += (
            "; what was measured is incomplete or contradicts itself, so it says of no slots what they bring"
        )
    elif rounds:
        came_to += "; too little was delivered to say of any slots what they bring"
    elif failure is None:
        came_to = f"nothing was decided: {controller.fault or 'no whole interval was measured'}"
    else:
        came_to = "nothing was decided"
    return came_to if failure is None else f"{came_to}; tuning stopped: {type(failure).__name__}: {failure}"


def in_words(allocation: Allocation) -> str:
    """``load 2, batch 1``, or what is said of a pool."""
    if allocation.is_shared:
        return f"{allocation.pool} slot{'' if allocation.pool == 1 else 's'} that all stages share"
    return ", ".join(f"{name} {count}" for name, count in allocation.slots)
