"""`thresholds`: Ray Data's rule for actor pools: slots more at a utilisation of 1.75, one less at 0.5."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.measures import own_slots
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


class Thresholds(Agent):
    """After Ray Data's ``DefaultActorAutoscaler``: every stage by itself.

    From the upper threshold on, a stage of n slots gets ``n (utilisation / up - 1)`` more, rounded up, at least one;
    up to the lower one it loses one.

    Args:
        up: utilisation from which slots are added.
        down: utilisation up to which one is taken away.
        most: slots added to a stage at once.

    Raises:
        ConfigError: they are not 0 <= down < up <= 2.
    """

    name = "thresholds"

    def __init__(self, *, up: float = 1.75, down: float = 0.5, most: float = float("inf")) -> None:
        if not 0 <= down < up <= 2:
            raise ConfigError(f"`down`={down!r} and `up`={up!r} must be in order, from 0 to 2")
        if not most >= 1:
            raise ConfigError(f"`most`={most!r} must be 1 or more")
        self._up = up
        self._down = down
        self._most = most

    def propose(self, measured: Measurement) -> Proposal:
        """Slots more, or one less, where a threshold is passed."""
        slots = own_slots(measured)
        use = utilisation(measured)
        # Nothing is added by Ray either where it would not fit; the first stages ask first.
        wish = np.clip(np.ceil(slots * (use / self._up - 1.0)), 1.0, self._most)
        wish = np.where((use >= self._up) & measured.present, wish, 0.0)
        room = np.maximum(np.floor(np.nan_to_num(measured.slot_limit)) - slots.sum(axis=1), 0.0)
        more = np.diff(np.minimum(wish.cumsum(axis=1), room[:, None]), axis=1, prepend=0.0)
        idle = (use <= self._down) & measured.present
        less = idle & (slots > 1)
        change = more - less
        none = (change == 0).all(axis=1)
        proposal = Proposal(
            slots=np.where(none[:, None], measured.slots, slots + change),
            pool=np.where(none, measured.pool, 0.0),  # a pool stays one, too
            explain=lambda i: self._words(change[i], full=bool(wish[i].any()), idle=bool(idle[i].any())),
        )
        return where_sound(measured, proposal)

    def _words(self, change: Floats, *, full: bool, idle: bool) -> str:
        parts = [f"{self.stage_name(stage)} {count:+.0f}" for stage, count in enumerate(change) if count]
        if parts:
            return ", ".join(parts)
        if full:
            return "keep: a stage's utilisation asks for more, but no slot is left to give"
        if idle:
            return "keep: no stage's utilisation asks for more, and those that could do with fewer slots have one"
        return "keep: every stage's utilisation lies between the thresholds"


def utilisation(measured: Measurement) -> Floats:
    """``[N, S]`` tasks running and waiting for each slot of a stage, 0 to 2.

    Ray counts the tasks in flight at an actor, of which one runs and, by default, one more waits: 2 is an actor
    that is always at work and always has the next task. Here the share of slots at work counts for the first;
    for the second, how full the queue in front of the stage is, in so far as the stage is not held back by the
    queue behind it (where Ray hands out no task). The first stage always has a next task.
    """
    slots = np.maximum(own_slots(measured), 1.0)
    running = np.clip(np.nan_to_num(measured.busy) / slots, 0.0, 1.0)
    waiting = np.ones_like(running)
    waiting[:, 1:] = np.clip(np.nan_to_num(measured.queue_fill[:, :-1]), 0.0, 1.0)
    free = 1.0 - np.clip(np.nan_to_num(measured.blocked), 0.0, 1.0)
    return np.where(measured.present, running + waiting * free, 0.0)
