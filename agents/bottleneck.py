"""`bottleneck`: one more slot for the slowest stage, again and again."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.measures import LARGE, known, own_slots, time_per_row
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


class Bottleneck(Agent):
    """The slowest stage is the one whose slots would make the fewest rows/s if they were always at work.

    Args:
        step: slots added at once.
        enough: nothing is added while the trainer waits less than this share of its time.

    Raises:
        ConfigError: an argument out of range.
    """

    name = "bottleneck"

    def __init__(self, *, step: int = 1, enough: float = 0.01) -> None:
        if step < 1:
            raise ConfigError(f"`step`={step!r} must be 1 or more")
        if not 0 <= enough <= 1:
            raise ConfigError(f"`enough`={enough!r} must be from 0 to 1")
        self._step = step
        self._enough = enough

    def propose(self, measured: Measurement) -> Proposal:
        """The slots in force, and `step` more for the slowest stage, up to the limit."""
        slots = own_slots(measured)
        time = time_per_row(measured)
        makes = np.divide(slots, time, out=np.full_like(slots, LARGE), where=measured.present & (time > 0))
        slowest = makes.argmin(axis=1)
        total = slots.sum(axis=1)
        room = np.floor(np.nan_to_num(measured.slot_limit)) - total
        waits = ~(measured.waiting <= self._enough)
        added = np.where(waits, np.clip(room, 0.0, self._step), 0.0)
        slots[np.arange(len(slots)), slowest] += added
        more = added > 0
        slots = np.where(more[:, None], slots, measured.slots)  # a pool stays one, too

        def explain(i: int) -> str:
            if not waits[i]:
                return "keep: the trainer hardly waits for data"
            name = self.stage_name(slowest[i])
            if not more[i]:
                return f"keep: {name} is the slowest, but no slot is left to give"
            rate = makes[i, slowest[i]]
            return f"{name} is the slowest with at most {rate:,.0f} rows/s: {added[i]:.0f} slot(s) more"

        proposal = Proposal(slots=slots, pool=np.where(more, 0.0, measured.pool), explain=explain)
        return where_sound(measured, proposal, known(measured))
