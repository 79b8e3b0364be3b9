"""`Referee`: every change is on trial. What does not deliver more than what it replaced is taken back.

Wraps any agent. A twin may be wrong about a real machine; measured rates are not. So a change is kept if it
delivers more, or as much with fewer slots, or with fewer slots all that the trainer can take; otherwise the
allocation before it returns and the agent has to wait twice as long before its next try. What tuning can cost is
bounded that way, whatever the agent believes. Where the allocation before cannot be had any more (memory no longer
holds it), what is in force instead is what later changes are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, ask
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

CLEAR = 0.03
"""Gain or loss that one interval shows clearly; less is looked at twice."""

EACH_DOUBLING = 0.1
"""Gain more, for every doubling of the slots, up to which one interval does not show it clearly: tasks that begin
together end together, so that what is delivered comes in bursts, and so small a gain may be one's."""

BRIEF_S = 0.9
"""Seconds of the first interval below which what it delivered is no more than a hint: small gains over it count for
nothing."""

SAME = 0.01
"""Loss that noise makes: with fewer slots, as good."""

DOUBLED = 0.02
"""Gain that every doubling of the slots has to bring besides: they hold rows that are under way, and memory."""

STEP = 4.0
"""Times as many slots as now, or as there are processors, that a change may give: what more would bring, these show,
and where it is nothing (a link that is full), they hold fewer rows under way and less memory."""

LONGEST = 6
"""Doublings of the time between tries after failures: 64 intervals at most."""

FED = 0.02
"""Share of its time that the trainer waits for data up to which its own pace is what is measured: fewer slots lose
nothing then, whatever rate is compared with (the first interval's has what was made before the trainer began)."""

JOINING_S = 10.0
"""Seconds within which slots that were added may yet begin to work: a process imports its libraries first. Twice as
long the next time, where none of them was seen at work and the trainer waited."""

LONGEST_JOINING_S = 80.0
"""After so long they are what does not help: containers and nodes that are asked for take half a minute or more."""

JOINED = 0.1
"""Share of the slots added by which slots at work have to be more, if those are among them."""

STARTING = 0.25
"""Loss at most that slots may cause that only begin to work, as processes that import do."""

PROBATION = 4
"""Intervals that a change which was kept has yet to prove itself in: rows that were queued are delivered at first, in a
burst that says nothing of what follows."""

RELAPSE = 0.1
"""Loss, in two of them running, with which it goes back to what it replaced."""

WARM = 1
"""Decisions at the beginning that are not judged: there is nothing to compare the first with."""

RESIZED = 0.2
"""Change of CPUs or memory by which a machine counts as resized."""

QUEUEING = 1.2
"""Slots at work, for each that a processor works on, as a multiple of those before the machine shrank, from which some
only queue for one."""

REMEMBERED = 8
"""Allocations that failed last: they are not tried again soon."""

SOON = 48
"""Decisions for which an allocation that failed is not tried again, unless the machine gets another size."""


class Referee(Agent):
    """See the module.

    Args:
        agent: decides.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = agent.name
        self.bounded = agent.bounded
        self.start(0, 1)

    def start(self, jobs: int, stages: int) -> None:
        """Forget everything."""
        self.agent.start(jobs, stages)
        self._slots: Floats = np.zeros((jobs, stages))
        self._pool: Floats = np.zeros(jobs)
        self._rate: Floats = np.zeros(jobs)
        self._tried: Floats = np.zeros(jobs)
        self._trial: Floats = np.zeros(jobs)
        self._hold: Floats = np.zeros(jobs)
        self._failures: Floats = np.zeros(jobs)
        self._age: Floats = np.zeros(jobs)
        # Slots at work then.
        self._work: Floats = np.zeros(jobs)
        # Seconds that slots have to begin to work.
        self._patience: Floats = np.full(jobs, JOINING_S)
        # What the last change that was kept had replaced, and how many intervals it has yet to prove itself in.
        self._prior_slots: Floats = np.zeros((jobs, stages))
        self._prior_pool: Floats = np.zeros(jobs)
        self._prior_rate: Floats = np.zeros(jobs)
        self._left: Floats = np.zeros(jobs)
        # Whether it delivered less in the last of them.
        self._low: Bools = np.zeros(jobs, dtype=bool)
        # Whether the rate to compare with was seen for a moment only.
        self._brief: Bools = np.zeros(jobs, dtype=bool)
        # Whether the last decision was to return to what was before.
        self._returning: Bools = np.zeros(jobs, dtype=bool)
        # Whether a resize was seen in the last interval that says anything, most of which the machine before it ran.
        self._resized: Bools = np.zeros(jobs, dtype=bool)
        # Whether the job ran out of memory and nothing was measured since that says how it does.
        self._restarted: Bools = np.zeros(jobs, dtype=bool)
        # By how much processors have become fewer since the slots in force were given: these are yet to be tried.
        self._shrunk: Floats = np.ones(jobs)
        # Slots at work for each processor in use, before it shrank.
        self._at_work: Floats = np.full(jobs, np.nan)
        self._cpus: Floats = np.zeros(jobs)
        self._limit: Floats = np.zeros(jobs)
        # Absent entries have a pool of -1, which nothing asks for.
        self._failed_slots: Floats = np.zeros((jobs, REMEMBERED, stages))
        self._failed_pool: Floats = np.full((jobs, REMEMBERED), -1.0)
        self._failed_at: Floats = np.zeros((jobs, REMEMBERED))
        self._failed_rate: Floats = np.zeros((jobs, REMEMBERED))
        # One bad interval may have been a stumble: what failed in one has a second chance, if more is expected of it
        # than what is in force delivers on average, by as much as it will have to bring.
        self._failed_surely: Bools = np.zeros((jobs, REMEMBERED), dtype=bool)
        self._failed_next = np.zeros(jobs, dtype=np.int64)
        self._stepwise = True

    def name_stages(self, stages: Sequence[str]) -> None:
        """To the agent, which says why."""
        self.agent.name_stages(stages)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self.agent.forget(rows)
        for array in (
            self._slots, self._pool, self._rate, self._work, self._tried, self._trial, self._hold, self._failures,
            self._age, self._cpus, self._limit, self._left,
        ):  # fmt: skip
            array[rows] = 0.0
        self._returning[rows] = self._resized[rows] = self._brief[rows] = self._restarted[rows] = False
        self._shrunk[rows], self._at_work[rows], self._patience[rows] = 1.0, np.nan, JOINING_S
        self._failed_pool[rows] = -1.0

    def knowledge(self) -> dict[str, Any]:
        """What the agent learnt."""
        return self.agent.knowledge()

    def recall(self, known: Mapping[str, Any]) -> None:
        """To the agent, which then knows what more slots bring."""
        self.agent.recall(known)
        self._stepwise = not known

    def propose(self, measured: Measurement) -> Proposal:
        """The agent's proposal, unless a trial is under way, has failed, or the agent has to wait."""
        asked = ask(self.agent, measured)
        if self._stepwise:
            asked = _in_steps(asked, measured)
        self._age += 1.0
        trial = self._judge(measured)
        self._learn(trial, measured)
        return self._decide(asked, trial, measured)

    def _judge(self, measured: Measurement) -> _Trial:
        """What became of the last change, from what was measured since."""
        sound = measured.sound()
        resized, first = self._see_machine(measured)
        same = self._in_force(measured)
        # After a resize, before anything is known, or where a guard did not let the job return to what was before,
        # what is in force is what to compare with.
        refused = self._returning & ~same
        new = resized | self._resized | self._restarted | measured.killed
        self._resized = (resized & ~first) | (self._resized & ~sound)
        self._restarted = (self._restarted | measured.killed) & ~sound
        total = self._total(measured.slots, measured.pool, measured)
        before = self._total(self._slots, self._pool, measured)
        rate = measured.delivered
        stale = sound & resized & ~first
        # Whether a change was worth having that was on trial when the machine changed, nobody will know after.
        interrupted = stale & ~same & ~refused & (self._rate > 0) & (self._age > WARM)
        interrupted &= rate <= (1.0 + _needed(total, before)) * self._rate
        fresh = sound & ~interrupted & (new | (self._rate == 0) | (self._age <= WARM) | refused)
        on_trial = sound & ~fresh & ~same & ~interrupted
        # What was added and does not work yet has not been tried.
        since = np.nan_to_num(measured.since_change, nan=np.inf)
        idle = on_trial & (total > before)
        idle &= _at_work(measured) < self._work + JOINED * (total - before)
        change = rate / np.maximum(self._rate, 1e-12) - 1.0
        joining = (
            idle & (change <= CLEAR) & (change >= -STARTING) & (self._tried == 0) & (since < self._patience)
        )
        on_trial &= ~joining
        count = np.where(on_trial, self._tried + 1.0, 0.0)
        mean = np.where(self._tried > 0, (self._trial * self._tried + rate) / np.maximum(count, 1.0), rate)
        gain = np.where(on_trial, mean / np.maximum(self._rate, 1e-12) - 1.0, 0.0)
        fed = np.nan_to_num(measured.waiting, nan=1.0) <= FED
        enough = _fewer(total, before) & fed
        sure = CLEAR + EACH_DOUBLING * _doublings(total, before)
        clear = (gain > sure) | (gain < -CLEAR) | (count >= 2) | enough
        doubtful = on_trial & self._brief & ~_fewer(total, before) & (gain <= sure)
        better = on_trial & clear & (((gain > _needed(total, before)) & ~doubtful) | enough)
        worse = on_trial & clear & ~better
        settled = sound & same & ~fresh & (since >= self._patience)
        lost = 1.0 - rate / np.maximum(self._prior_rate, 1e-12)
        low = settled & (self._left > 0) & (lost > RELAPSE) & ~fed
        relapsed = low & self._low
        gain = np.where(relapsed, -lost, gain)
        slow = worse & idle & (since < 2.0 * self._patience) & (gain >= -STARTING)
        slow &= (self._patience < LONGEST_JOINING_S) & ~fed
        return _Trial(
            sound=sound, resized=resized, stale=stale, interrupted=interrupted, same=same & sound, fresh=fresh,
            joining=joining, on_trial=on_trial, better=better, worse=worse | relapsed, slow=slow,
            settled=settled, low=low, relapsed=relapsed, undecided=on_trial & ~clear,
            twice=((count >= 2) & ~doubtful) | relapsed, count=count, mean=mean, gain=gain,
        )  # fmt: skip

    def _learn(self, trial: _Trial, measured: Measurement) -> None:
        """What later changes are compared with, and how long the agent has to wait."""
        fresh, better, worse, undecided = trial.fresh, trial.better, trial.worse, trial.undecided
        self._returning = worse | (self._returning & ~trial.sound)
        self._tried = np.where(undecided, trial.count, 0.0)
        self._trial = np.where(undecided, trial.mean, 0.0)
        taken = fresh | better
        self._put_on_probation(trial)
        self._slots = np.where(taken[:, None], measured.slots, self._slots)
        self._pool = np.where(taken, measured.pool, self._pool)
        self._brief = np.where(fresh, measured.interval < BRIEF_S, self._brief & ~trial.same & ~better)
        kept = np.where(
            trial.same & ~fresh & ~trial.relapsed, 0.5 * self._rate + 0.5 * measured.delivered, self._rate
        )
        self._rate = np.where(fresh, measured.delivered, np.where(better, trial.mean, kept))
        self._work = np.where(taken | (trial.same & ~trial.relapsed), _at_work(measured), self._work)
        self._patience = np.where(trial.slow, 2.0 * self._patience, self._patience)
        self._failures = np.where(taken, 0.0, self._failures + (worse & ~trial.slow))
        doublings = np.clip(self._failures, 1.0, LONGEST)
        hold = np.where(worse, 2.0**doublings, np.maximum(self._hold - 1.0, 0.0))
        self._hold = np.where(taken, 0.0, hold)

    def _put_on_probation(self, trial: _Trial) -> None:
        """What a change that is kept replaces is what is returned to if it turns out to deliver less."""
        better, relapsed = trial.better, trial.relapsed
        self._prior_slots = np.where(better[:, None], self._slots, self._prior_slots)
        self._prior_pool = np.where(better, self._pool, self._prior_pool)
        self._prior_rate = np.where(better, self._rate, self._prior_rate)
        self._left = np.where(
            better, PROBATION, np.where(trial.fresh | relapsed, 0.0, self._left - trial.settled)
        )
        self._low = np.where(trial.settled, trial.low & ~relapsed, self._low & ~better)
        self._slots = np.where(relapsed[:, None], self._prior_slots, self._slots)
        self._pool = np.where(relapsed, self._prior_pool, self._pool)
        self._rate = np.where(relapsed, self._prior_rate, self._rate)

    def _decide(self, asked: Proposal, trial: _Trial, measured: Measurement) -> Proposal:
        """Back to what was before, what is in force for now, or what the agent asks for."""
        sound, worse, undecided = trial.sound, trial.worse, trial.undecided
        back = worse | trial.interrupted
        waits = ((self._hold > 0) & sound & ~worse) | (trial.stale & ~back)
        self._remember_failures(measured, worse & ~trial.slow, trial.twice)
        known = sound & ~back & ~undecided & ~waits & self._has_failed(asked, measured)
        stays = undecided | trial.joining | waits | known
        slots = np.where(back[:, None], self._slots, np.where(stays[:, None], measured.slots, asked.slots))
        pool = np.where(back, self._pool, np.where(stays, measured.pool, asked.pool))
        part = self._shrunk
        shrink = self._shrink(measured, sound & ~trial.resized & ~trial.on_trial & ~trial.joining)
        pool = np.where(shrink, np.ceil(measured.pool * part), pool)
        verdict = _Verdict(
            shrink=shrink, worse=worse, joining=trial.joining, undecided=undecided, interrupted=trial.interrupted,
            stale=trial.stale, waits=waits, known=known, gain=trial.gain, hold=self._hold,
        )  # fmt: skip
        return Proposal(slots=slots, pool=pool, explain=lambda i: verdict.said(i) or asked.explain(i))

    def _see_machine(self, measured: Measurement) -> tuple[Bools, Bools]:
        """``[N]`` whether the machine has got another size, and whether it is the first that is seen."""
        # A little more or less of either is what other programs leave, not a machine of another size.
        resized = (np.abs(measured.cpus / np.maximum(self._cpus, 1e-9) - 1.0) > RESIZED) | (
            np.abs(measured.memory_limit / np.maximum(self._limit, 1.0) - 1.0) > RESIZED
        )
        first = self._cpus == 0
        left = measured.cpus / np.where(first, measured.cpus, self._cpus)
        self._shrunk *= np.where(resized & (left < 1.0 - RESIZED), left, 1.0)
        self._cpus = np.where(resized, measured.cpus, self._cpus)
        self._limit = np.where(resized, measured.memory_limit, self._limit)
        self._failed_pool[resized] = -1.0
        return resized, first

    def _shrink(self, measured: Measurement, settled: Bools) -> Bools:
        """``[N]`` whether to try a pool of as many slots for each processor as before the machine shrank."""
        at_work = _at_work(measured)
        each = at_work / np.maximum(np.nan_to_num(measured.cpus_used), 1e-9)
        known = self._shrunk == 1.0
        shrink = settled & ~known & (measured.pool > 0)
        shrink &= (each > QUEUEING * self._at_work) & (at_work > measured.cpus)
        # While the machine is as it was, this is what is normal.
        self._at_work = np.where(settled & known, each, self._at_work)
        self._shrunk = np.where(settled, 1.0, self._shrunk)
        return np.asarray(shrink)

    def _remember_failures(self, measured: Measurement, worse: Bools, twice: Bools) -> None:
        rows = np.flatnonzero(worse)
        before = self._same_as_failed(measured.slots, measured.pool, measured)[rows]
        again = before.any(axis=1)
        at = np.where(again, before.argmax(axis=1), self._failed_next[rows] % REMEMBERED)
        self._failed_slots[rows, at] = measured.slots[rows]
        self._failed_pool[rows, at] = measured.pool[rows]
        self._failed_at[rows, at] = self._age[rows]
        self._failed_rate[rows, at] = measured.delivered[rows]
        self._failed_surely[rows, at] = again | twice[rows]
        self._failed_next[rows] += ~again

    def _same_as_failed(self, slots: Floats, pool: Floats, measured: Measurement) -> Bools:
        """``[N, REMEMBERED]`` which of the allocations that failed this is."""
        off = np.abs(self._failed_slots - np.rint(slots)[:, None]) * measured.present[:, None]
        same = (pool[:, None] > 0) | (off.max(axis=2, initial=0.0) < 0.5)
        return np.asarray((self._failed_pool == pool[:, None]) & same)

    def _has_failed(self, asked: Proposal, measured: Measurement) -> Bools:
        """``[N]`` whether what is asked for has surely failed lately."""
        # It failed beside what was in force then; where less is delivered now, it may be worth having.
        less = self._failed_rate <= (1.0 + CLEAR) * self._rate[:, None]
        lately = self._age[:, None] - self._failed_at < SOON
        tried = self._same_as_failed(asked.slots, asked.pool, measured)
        hopeless = np.zeros(len(measured), dtype=bool)
        if asked.rate is not None:
            total = self._total(asked.slots, asked.pool, measured)
            needed = _needed(total, self._total(self._slots, self._pool, measured))
            hopeless = asked.rate <= (1.0 + needed) * self._rate
        return np.asarray((tried & lately & less & (self._failed_surely | hopeless[:, None])).any(axis=1))

    def _in_force(self, measured: Measurement) -> Bools:
        slots = np.abs(measured.slots - self._slots).max(axis=1, initial=0.0, where=measured.present) < 0.5
        return np.asarray((measured.pool == self._pool) & ((self._pool > 0) | slots))

    def _total(self, slots: Floats, pool: Floats, measured: Measurement) -> Floats:
        return np.where(pool > 0, pool, (slots * measured.present).sum(axis=1))


def _in_steps(asked: Proposal, measured: Measurement) -> Proposal:
    """What is asked for, but no more than `STEP` times what is in force or the processors: of a pool, or of a stage."""
    cpus = np.nan_to_num(measured.cpus)
    of_stages = np.where(measured.present, np.nan_to_num(measured.slots), 0.0)
    total = np.where(measured.pool > 0, measured.pool, of_stages.sum(axis=1))
    each = np.where(measured.pool[:, None] > 0, measured.pool[:, None], of_stages)
    pool = np.minimum(asked.pool, STEP * np.maximum(total, cpus))
    slots = np.minimum(asked.slots, STEP * np.maximum(each, cpus[:, None]))
    cut = (pool < asked.pool) | ((asked.pool <= 0) & (slots < asked.slots).any(axis=1))

    def explain(i: int) -> str:
        return asked.explain(i) + (f"; for now {STEP:g} times as many as there are" if cut[i] else "")

    return replace(asked, slots=slots, pool=pool, explain=explain)


def _at_work(measured: Measurement) -> Floats:
    return np.asarray(np.where(measured.present, np.nan_to_num(measured.busy), 0.0).sum(axis=1))


def _needed(total: Floats, before: Floats) -> Floats:
    """``[N]`` gain that a change from `before` slots to `total` has to bring; fewer may bring a little less."""
    more = SAME + DOUBLED * _doublings(total, before)
    return np.asarray(np.where(_fewer(total, before), -SAME, more))


def _doublings(total: Floats, before: Floats) -> Floats:
    return np.asarray(np.log2(np.maximum(total / np.maximum(before, 1.0), 1.0)))


def _fewer(total: Floats, before: Floats) -> Bools:
    return np.asarray(total < 0.95 * np.maximum(before, 1.0))


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What became of the last changes of N jobs, ``[N]`` each.

    Attributes:
        sound: the interval says something.
        resized: the machine has got another size since, or is seen for the first time.
        stale: of a resize; what was measured is still, in part at least, what the machine before did.
        interrupted: of one that came while a change was on trial.
        same: what is in force is what others are compared with.
        fresh: it is from now on, whatever was before.
        joining: slots that were added are not at work yet.
        on_trial: it is something else; then it is `better`, `worse` or `undecided`.
        settled: `same`, and for so long that all its slots can be at work.
        low: what was kept delivers less then than what it replaced; relapsed: again, so it is `worse` after all.
        slow: it is worse, but no slot that was added was seen at work, and they may need longer.
        twice: seen for two intervals, and compared with what was seen for long enough.
        count: intervals of the trial; mean: rows/s in them; gain: over what they are compared with.
    """

    sound: Bools
    resized: Bools
    stale: Bools
    interrupted: Bools
    same: Bools
    fresh: Bools
    joining: Bools
    on_trial: Bools
    better: Bools
    worse: Bools
    slow: Bools
    settled: Bools
    low: Bools
    relapsed: Bools
    undecided: Bools
    twice: Bools
    count: Floats
    mean: Floats
    gain: Floats


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What became of N jobs, ``[N]`` each: the first that is true, in this order; `gain` and `hold` are told."""

    shrink: Bools
    worse: Bools
    joining: Bools
    undecided: Bools
    interrupted: Bools
    stale: Bools
    waits: Bools
    known: Bools
    gain: Floats
    hold: Floats

    def said(self, i: int) -> str:
        """In words; nothing where the agent has its way."""
        gain, left = f"the change brought {self.gain[i]:+.1%}", round(self.hold[i])
        hold = f"next try in {left} interval{'' if left == 1 else 's'}"
        if self.shrink[i]:
            return "as many slots for each processor as before: there are fewer now, and slots queue for them"
        if self.worse[i]:
            return f"back to what was before: {gain}; {hold}"
        if self.joining[i]:
            return "keep: the slots that were added are not at work yet"
        if self.undecided[i]:
            return f"keep: {gain} so far, which one more interval has to confirm"
        if self.interrupted[i]:
            return "back to what was before: the machine has another size, and the last change was still on trial"
        if self.stale[i]:
            return "keep: the machine has another size, and this interval still shows the one before"
        if self.waits[i]:
            return f"keep: the last change did not help; {hold}"
        if self.known[i]:
            return "keep: what the agent would try was tried before, and delivered less"
        return ""
