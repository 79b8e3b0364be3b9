"""`even`: the CPUs there are at the start, spread evenly over the stages. The paper's "heuristic-even"."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.first import First
from intune.agents.measures import spread
from intune.envs.measurement import Measurement


class Even(Agent):
    """What a person does who knows nothing of the stages; never done again.

    Args:
        follow: done again at each resize.
    """

    name = "even"

    def __init__(self, *, follow: bool = False) -> None:
        self._first = First(follow=follow)

    def start(self, jobs: int, stages: int) -> None:
        """Forget the machines' sizes."""
        self._first.start(jobs)

    def forget(self, rows: object) -> None:
        """Forget those of `rows`."""
        self._first.forget(rows)

    def propose(self, measured: Measurement) -> Proposal:
        """As many slots as CPUs, the same for every stage; the first ones get what is left over."""
        cpus = np.nan_to_num(self._first.cpus(measured))
        slots = spread(cpus, np.ones(measured.present.shape), measured.present)
        proposal = Proposal(
            slots=slots,
            pool=np.zeros(len(measured)),
            explain=lambda i: (
                f"{cpus[i]:.0f} CPUs spread evenly over {int(measured.present[i].sum())} stages"
            ),
        )
        return where_sound(measured, proposal)
