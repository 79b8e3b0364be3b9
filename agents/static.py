"""`static`: one slot a stage, or an allocation that a person gave, whatever is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from intune.agents.base import Agent, Decision, Proposal, where_sound
from intune.envs.measurement import Measurement
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError


class Static(Agent):
    """The paper's "unoptimised" baseline without arguments.

    Args:
        slots: of each stage, in order or by name; the stages not named get one. None: one slot a stage.
            By name it decides for a live job only, where names are known.

    Raises:
        ConfigError: a number below one, or one that is not whole.
    """

    name = "static"
    bounded = False

    def __init__(self, *, slots: Sequence[int] | Mapping[str, int] | None = None) -> None:
        self._named = dict(slots) if isinstance(slots, Mapping) else None
        in_order = list(slots) if slots is not None and not isinstance(slots, Mapping) else []
        for count in [*in_order, *(self._named or {}).values()]:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ConfigError(f"`slots` has {count!r}; give whole numbers of 1 or more")
        self._slots = np.array(in_order, dtype=np.float64)

    def propose(self, measured: Measurement) -> Proposal:
        """The slots given, for every job."""
        if self._named is not None:
            raise ConfigError(
                "`slots` by name need a job whose stages have names; give them in order instead"
            )
        slots = np.ones(measured.present.shape)
        count = min(len(self._slots), measured.stages)
        slots[:, :count] = self._slots[:count]
        slots = np.where(measured.present, slots, 0.0)
        said = "as given" if len(self._slots) else "one slot a stage"
        proposal = Proposal(
            slots=slots, pool=np.zeros(len(measured)), explain=lambda _: f"{said}: never tuned"
        )
        return where_sound(measured, proposal)

    def decide(self, measured: Measurement, stages: Sequence[str]) -> Decision:
        """For one job; names are looked up among its stages.

        Raises:
            ConfigError: a name that none of its stages has.
        """
        if self._named is None:
            return super().decide(measured, stages)
        given = Allocation.per_stage(dict.fromkeys(stages, 1)).merged(self._named, stages)
        plain = Static(slots=[given.of(stage) for stage in stages])
        return plain.decide(measured, stages)
