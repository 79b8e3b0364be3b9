"""`autotune`: tf.data's AUTOTUNE, with its model, its clock and its budgets, deciding for our stages."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from intune.agents.autotune_model import Tuned, hill_climb, stage_based
from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.measures import known
from intune.envs.jobs import Bools, Floats, Ints
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

Algorithm = Literal["max_parallelism", "hill_climb", "stage_based"]

FIRST_PERIOD = 0.01
"""Seconds; each round doubles it, up to `LAST_PERIOD` (``kOptimizationPeriodMinMs`` and ``MaxMs``)."""
LAST_PERIOD = 60.0
RAM_SHARE = 0.5
"""Of the memory free at the start, what buffers may hold (``kRamBudgetShare``)."""
RESIZED = 0.05
"""Change of memory by which a machine counts as another one, where that begins anew."""
INITIAL_PARALLELISM = 16.0
"""Of a stage until the first round that has seen elements."""


class Autotune(Agent):
    """tf.data's tuner, after TensorFlow's ``model.cc`` and ``root_dataset.cc``.

    - The CPU budget, the most workers of a stage and the RAM budget are those of the start, and stay.
    - A round is due at once, and then after 20 ms, 40 ms, 80 ms ... 60 s; whenever one fell due in an interval,
      one is made at its end. In a live pipeline of 5 s an interval these are the ends of the 1st, 2nd, 3rd, 5th,
      9th, 17th interval and every twelfth from then on.
    - Its climbs go by the mean time per element since the start, waiting in user code included; the stage-based
      search by that of the latest elements (a moving average of about ten), here of the interval.
    - Memory is the bytes of buffered elements; the working sets of workers are not seen.
    - Every stage has a buffer of as many elements as workers, as parallel maps do. Buffers of prefetching stages,
      which AUTOTUNE tunes too, have no counterpart here.
    - A job that ran out of memory begins anew, with the machine as it is then.

    Args:
        algorithm: ``"max_parallelism"`` is what ``tf.data.AUTOTUNE`` does by default.
        element_rows: rows of an element, of importance only to the nanosecond that a climb's step may lose.
        beyond: what becomes of more workers altogether than slots that may be given out. TensorFlow limits the
            workers of a stage, not of all: ``"share"`` gives every stage its share of the slots, as of any agent;
            ``"pool"`` lets all stages share them, as TensorFlow's pool of threads does with its workers.

    Raises:
        ConfigError: an unknown algorithm or `beyond`, or less than one row an element.
    """

    name = "autotune"
    restarts = False
    """Begin anew when the machine is resized."""

    def __init__(
        self,
        *,
        algorithm: Algorithm = "max_parallelism",
        element_rows: float = 8192.0,
        beyond: Literal["share", "pool"] = "share",
    ) -> None:
        algorithms = ("max_parallelism", "hill_climb", "stage_based")
        if algorithm not in algorithms:
            raise ConfigError(f"`algorithm`={algorithm!r} must be one of {', '.join(algorithms)}")
        if beyond not in ("share", "pool"):
            raise ConfigError(f"`beyond`={beyond!r} must be share or pool")
        if not element_rows >= 1:
            raise ConfigError(f"`element_rows`={element_rows!r} must be 1 or more")
        self._algorithm = algorithm
        self._element_rows = element_rows
        self._beyond = beyond
        self.start(0, 0)

    def start(self, jobs: int, stages: int) -> None:
        """New iterators."""
        self._cpus = np.full(jobs, np.nan)
        self._ram = np.zeros(jobs)
        self._memory = np.zeros(jobs)
        self._elapsed = np.zeros(jobs)
        self._due = np.zeros(jobs)
        self._period = np.full(jobs, FIRST_PERIOD)
        self._busy = np.zeros((jobs, stages))
        self._rows = np.zeros((jobs, stages))
        self._latest = np.zeros((jobs, stages))
        self._chosen = np.zeros((jobs, stages))

    def forget(self, rows: Any) -> None:
        """New iterators for the jobs at `rows`."""
        self._cpus[rows] = np.nan
        self._elapsed[rows] = 0.0
        self._due[rows] = 0.0
        self._period[rows] = FIRST_PERIOD
        for sums in (self._busy, self._rows, self._latest, self._chosen):
            sums[rows] = 0.0

    def propose(self, measured: Measurement) -> Proposal:
        """What the round found that was due, else what the one before did."""
        sound = self._record(measured)
        tunable = sound & known(measured) & ((self._rows > 0) | ~measured.present).all(axis=1)
        due = self._rounds(tunable)
        if due.any():
            rows = np.flatnonzero(due)
            found, stands = self._search(measured, rows)
            self._chosen[rows[stands]] = found[stands]
        first = np.minimum(INITIAL_PARALLELISM, np.nan_to_num(self._cpus, nan=1.0))
        never: Bools = np.asarray(~self._chosen.any(axis=1))
        slots: Floats = np.where(never[:, None], first[:, None], self._chosen)
        left, budget = np.maximum(self._due - self._elapsed, 0.0), self._cpus.copy()

        def explain(i: int) -> str:
            following = f"the next round is due in {left[i]:.3g} s"
            if due[i]:
                return f"{self._algorithm} for {budget[i]:.0f} CPUs, those when it began; {following}"
            return f"{'keep' if same[i] else 'keep to what the last round chose'}: {following}"

        slots = np.where(measured.present, np.maximum(slots, 1.0), 0.0)
        same = (measured.pool == 0) & (slots == measured.slots).all(axis=1, where=measured.present)
        pool = np.zeros(len(measured))
        if self._beyond == "pool":
            limit = np.maximum(np.floor(np.nan_to_num(measured.slot_limit)), 1.0)
            pool = np.where(slots.sum(axis=1) > limit, limit, 0.0)
        return where_sound(measured, Proposal(slots=slots, pool=pool, explain=explain), sound)

    def _record(self, measured: Measurement) -> Bools:
        """Take the interval into the sums; ``[N]`` whether it can be trusted."""
        again: Bools = np.array(measured.killed)
        if self.restarts:
            # What may be used moves by some pages from one reading to the next; that is no other machine.
            left = np.abs(measured.memory_limit / np.maximum(self._memory, 1.0) - 1.0)
            resized = (np.floor(measured.cpus) != self._cpus) | (left > RESIZED)
            again = again | (resized & ~np.isnan(self._cpus))
        self.forget(again)
        sound = measured.sound()
        new: Bools = np.asarray(sound & np.isnan(self._cpus))
        self._cpus[new] = np.floor(measured.cpus[new])
        self._memory[new] = measured.memory_limit[new]
        self._ram[new] = RAM_SHARE * np.maximum(measured.memory_limit - measured.memory_used, 0.0)[new]
        alive = ~np.isnan(self._cpus)
        self._elapsed += np.where(alive, np.nan_to_num(measured.interval, posinf=0.0, neginf=0.0), 0.0)
        use = sound[:, None] & measured.present & (measured.rate > 0)
        seconds = np.where(use, measured.interval[:, None], 0.0)
        busy, rate = np.where(use, measured.busy, 0.0), np.where(use, measured.rate, 1.0)
        self._busy += busy * seconds
        self._rows += np.where(use, rate, 0.0) * seconds
        self._latest = np.where(use, busy / rate, self._latest)
        return sound

    def _rounds(self, tunable: Bools) -> Bools:
        """``[N]`` whether a round fell due; the clock goes on past all that did."""
        now = self._elapsed + 1e-9
        any_due = tunable & (self._due <= now)
        while (due := tunable & (self._due <= now) & (self._period < LAST_PERIOD)).any():
            self._period = np.where(due, np.minimum(2 * self._period, LAST_PERIOD), self._period)
            self._due = np.where(due, self._due + self._period, self._due)
        # The others are equally far apart, and many where a clock has jumped.
        late = np.where(tunable, np.maximum(np.floor((now - self._due) / LAST_PERIOD) + 1.0, 0.0), 0.0)
        self._due = self._due + late * LAST_PERIOD
        return np.asarray(any_due)

    def _search(self, measured: Measurement, rows: Ints) -> tuple[Floats, Bools]:
        """Parallelism for the jobs at `rows`, and whether it stands."""
        cpus = np.maximum(np.nan_to_num(self._cpus, nan=1.0), 1.0)
        mean = self._busy / np.maximum(self._rows, 1e-300)
        time = self._latest if self._algorithm == "stage_based" else mean
        tuned = Tuned(
            present=measured.present,
            self_time=time * self._element_rows,
            element_bytes=np.where(measured.present, np.nan_to_num(measured.block_bytes), 0.0),
            most=cpus,
            ram_budget=self._ram,
            cpu_budget=cpus,
        ).rows(rows)
        if self._algorithm == "stage_based":
            # The last 100 gaps between the trainer's requests lie within the interval: their mean is its step time.
            return stage_based(tuned, np.nan_to_num(measured.step[rows]) * self._element_rows)
        return hill_climb(tuned, cpu_stop=self._algorithm == "hill_climb")
