"""`ds2`: from every stage's true rate, the slots of all stages at once (Kalavri et al., OSDI'18, sections 3 and 4)."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.heuristic_adaptive import balanced
from intune.agents.measures import known
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


class DS2(Agent):
    """A stage's *true rate* is what it makes per second at work, without the time it starves or is blocked.

    With it, the slots that a target rate takes are ``ceil(target / true rate)``, for every stage at once. DS2's
    target is the source's rate; here the source can always give more, so the target is what the trainer takes,
    what the processors allow at the processor time measured, or what the slots that may be given out allow.
    Scaling is taken to be linear and memory is not looked at, as in DS2.

    Args:
        tolerance: slots are left alone while the rate delivered is within this share of the target (DS2's
            "target rate ratio").
        warm_up: intervals after a change that are not decided on (DS2's "warm-up time").

    Raises:
        ConfigError: an argument out of range.
    """

    name = "ds2"

    def __init__(self, *, tolerance: float = 0.02, warm_up: int = 0) -> None:
        if not 0 <= tolerance < 1:
            raise ConfigError(f"`tolerance`={tolerance!r} must be from 0 to below 1")
        if warm_up < 0:
            raise ConfigError(f"`warm_up`={warm_up!r} must be 0 or more")
        self._tolerance = tolerance
        self._warm_up = warm_up

    def propose(self, measured: Measurement) -> Proposal:
        """Slots for the target, where it is not reached."""
        target, wanted = balanced(measured)
        fine = known(measured)
        reached = measured.delivered >= (1.0 - self._tolerance) * target
        fresh = np.zeros(len(measured), dtype=bool)
        if self._warm_up:
            fresh = measured.since_change < (self._warm_up + 0.5) * measured.interval
        still = (reached | fresh) & (measured.pool == 0)
        slots = np.where(still[:, None], measured.slots, wanted)

        def explain(i: int) -> str:
            if fresh[i] and still[i]:
                return "keep: the last change has not taken effect yet"
            if still[i]:
                return f"keep: {measured.delivered[i]:,.0f} rows/s are within reach of {target[i]:,.0f}"
            return f"true rates give {int(wanted[i].sum())} slots for {target[i]:,.0f} rows/s"

        return where_sound(
            measured, Proposal(slots=slots, pool=np.zeros(len(measured)), explain=explain), fine
        )
