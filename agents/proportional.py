"""`proportional`: as many slots as CPUs, in proportion to what each stage was measured to cost."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.measures import known, spread, time_per_row
from intune.envs.measurement import Measurement


class Proportional(Agent):
    """Cost is a slot's time per row, waiting included. Redone every interval."""

    name = "proportional"

    def propose(self, measured: Measurement) -> Proposal:
        """Slots that take the same time for the same rows."""
        cost = time_per_row(measured)
        slots = spread(np.nan_to_num(measured.cpus), cost, measured.present)

        def explain(i: int) -> str:
            share = cost[i] / max(cost[i].sum(), 1e-300)
            dearest = int(share.argmax())
            name = self.stage_name(dearest)
            return f"slots by cost on {measured.cpus[i]:.0f} CPUs; {name} takes {share[dearest]:.0%} of it"

        proposal = Proposal(slots=slots, pool=np.zeros(len(measured)), explain=explain)
        return where_sound(measured, proposal, known(measured))
