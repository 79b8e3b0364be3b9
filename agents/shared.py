"""`shared`: one pool of slots from which any ready task is taken: the untuned default, the strongest simple rival."""

from __future__ import annotations

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.first import First
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


class Shared(Agent):
    """A pool of as many slots as there are CPUs at the start.

    Args:
        per_cpu: slots per CPU.
        follow: choose anew when the machine is resized.

    Raises:
        ConfigError: `per_cpu` is not above 0.
    """

    name = "shared"

    def __init__(self, *, per_cpu: float = 1.0, follow: bool = False) -> None:
        if not 0 < per_cpu < float("inf"):
            raise ConfigError(f"`per_cpu`={per_cpu!r} must be above 0")
        self._per_cpu = per_cpu
        self._first = First(follow=follow)

    def start(self, jobs: int, stages: int) -> None:
        """Forget the machines' sizes."""
        self._first.start(jobs)

    def forget(self, rows: object) -> None:
        """Forget those of `rows`."""
        self._first.forget(rows)

    def propose(self, measured: Measurement) -> Proposal:
        """The pool."""
        cpus = self._first.cpus(measured)
        pool = np.maximum(np.floor(np.nan_to_num(cpus) * self._per_cpu), 1.0)

        def explain(i: int) -> str:
            return (
                f"one pool of {pool[i]:.0f} slot{'' if pool[i] == 1 else 's'} for all stages "
                f"on {cpus[i]:.0f} CPU{'' if round(cpus[i]) == 1 else 's'}"
            )

        proposal = Proposal(slots=np.where(measured.present, 1.0, 0.0), pool=pool, explain=explain)
        return where_sound(measured, proposal)
