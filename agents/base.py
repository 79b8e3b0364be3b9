"""What every agent is: measurements in, slots out, with a reason in words. Never touches a thread or a file.

An agent decides for N jobs at once (`propose`), which is what simulation needs; `decide` is the same for the one
live job of a tuner. Agents remember what they saw; `start` makes them forget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intune.envs.actions import feasible
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement
from intune.pipelines.allocation import MOST_SLOTS, Allocation
from intune.pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What N jobs should have next.

    Attributes:
        slots: ``[N, S]`` slots of each stage; absent stages do not matter.
        pool: ``[N]`` slots to be shared by all stages instead; 0 for slots per stage.
        explain: the reason for job i, in words; called only where somebody reads it.
        rate: ``[N]`` rows/s that the agent expects of it; None where it expects nothing in numbers.
    """

    slots: Floats
    pool: Floats
    explain: Callable[[int], str]
    rate: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the one job of a tuner should have next.

    Attributes:
        allocation: slots to give; None to keep what there is.
        reason: why, in words, also of keeping.
    """

    allocation: Allocation | None
    reason: str


class Agent(ABC):
    """Decides, job by job, how many slots each stage gets.

    Attributes:
        name: by which it is known in the registry, on the command line and in `intune.tune`.
        bounded: whether its decisions are cut to what `Measurement.slot_limit` has been at most; not where a person
            said how many. (On a machine that has shrunk, slots that wait may be worth as much as before.)
    """

    name: str = ""
    bounded: bool = True
    _most_slots: float = 1.0
    _stage_names: tuple[str, ...] = ()

    def start(self, jobs: int, stages: int) -> None:  # noqa: B027 - many agents remember nothing
        """Forget everything; `jobs` jobs of at most `stages` stages begin."""

    def forget(self, rows: Any) -> None:  # noqa: B027 - most agents remember nothing of a job
        """New jobs begin at `rows`; the others go on."""

    def knowledge(self) -> dict[str, Any]:
        """What is worth keeping for the next run of the one job of a tuner, as JSON takes it; nothing by default."""
        return {}

    def recall(self, known: Mapping[str, Any]) -> None:  # noqa: B027 - most agents keep nothing
        """Begin with what `knowledge` gave in an earlier run of the same job. Called after `start`, before the first
        measurement; parts that an agent does not know are passed over.

        Raises:
            ConfigError: it is none of this job's.
        """

    def name_stages(self, stages: Sequence[str]) -> None:
        """What the stages of the one job are called in reasons; `decide` tells it."""
        self._stage_names = tuple(stages)

    def stage_name(self, stage: int) -> str:
        """A stage in a reason: its name, or where nobody told it (many jobs side by side) its number from 0."""
        return self._stage_names[stage] if stage < len(self._stage_names) else f"stage {stage}"

    def slots_in_words(self, slots: Floats, present: Bools) -> str:
        """Slots of one job's stages in a reason: ``load 9, batch 1``."""
        return ", ".join(f"{self.stage_name(int(at))} {slots[at]:.0f}" for at in np.flatnonzero(present))

    @abstractmethod
    def propose(self, measured: Measurement) -> Proposal:
        """Slots for each job after the interval just measured. Called once an interval, in order.

        Where a measurement is not sound (`Measurement.sound`) the agent keeps what is in force.
        """

    def decide(self, measured: Measurement, stages: Sequence[str]) -> Decision:
        """The same for one job.

        Args:
            measured: of one job (N = 1).
            stages: names of its stages, in order.

        Raises:
            ConfigError: measurements of several jobs.
        """
        if len(measured) != 1:
            raise ConfigError(f"`decide` takes measurements of one job, but there are {len(measured)}")
        self.name_stages(stages)
        # An interval that says nothing of rates may still say that the job died or that time passed.
        proposal = ask(self, measured)
        if not measured.sound()[0]:
            return Decision(allocation=None, reason=unsound_reason(measured))
        self._most_slots = max(self._most_slots, float(measured.slot_limit[0]))
        return decision_of(measured, proposal, stages, limit=self._most_slots if self.bounded else np.inf)


def decision_of(
    measured: Measurement, proposal: Proposal, stages: Sequence[str], *, limit: float
) -> Decision:
    """A proposal for one job as an allocation with a reason; None where it changes nothing.

    Slots are cut to `limit`.
    """
    reason = proposal.explain(0)
    pool, now = int(proposal.pool[0]), int(measured.pool[0])
    if pool > 0:
        given = int(min(pool, limit, MOST_SLOTS))
        return Decision(allocation=None if given == now else Allocation.shared(given), reason=reason)
    count = len(stages)
    wanted = np.where(measured.present, np.minimum(proposal.slots, MOST_SLOTS), 0.0)
    slots = feasible(measured.present, measured.slots, wanted, np.full(1, limit))[0].astype(int)
    same = now == 0 and bool((slots[:count] == np.rint(measured.slots[0, :count])).all())
    made = Allocation.per_stage(dict(zip(stages, slots[:count].tolist(), strict=True)))
    return Decision(allocation=None if same else made, reason=reason)


def ask(agent: Agent, measured: Measurement) -> Proposal:
    """What an agent, perhaps somebody's own, proposes, if slots can be given by it; in whole slots.

    Raises:
        ConfigError: it is no proposal, of other jobs or stages, of numbers that are none, or without a reason.
    """
    proposal: Any = agent.propose(measured)
    said = f"agent {agent.name!r} proposed"
    if not isinstance(proposal, Proposal):
        raise ConfigError(f"{said} {type(proposal).__name__}; `propose` must return a Proposal")
    shapes = {"slots": measured.slots.shape, "pool": measured.pool.shape}
    if proposal.rate is not None:
        shapes["rate"] = measured.delivered.shape
    checked: Proposal = replace(
        proposal,
        **{name: _numbers(getattr(proposal, name), shapes[name], f"{said} `{name}`") for name in shapes},
        explain=_in_words(proposal.explain, f"agent {agent.name!r}"),
    )
    # Of an interval that says nothing, what is in force may be unknown as well.
    sound = measured.sound()
    slots = checked.slots[measured.present & (sound & (checked.pool <= 0))[:, None]]
    if not (np.isfinite(checked.pool[sound]).all() and np.isfinite(slots).all()):
        raise ConfigError(
            f"{said} slots that are not finite; where it knows nothing it can give what is in force"
        )
    # Rounded before anyone judges it: what is given must be what was found to fit.
    return replace(checked, slots=np.rint(checked.slots), pool=np.rint(checked.pool))


def _numbers(value: Any, shape: tuple[int, ...], said: str) -> Floats:
    """`value`, perhaps lists, as an array of floats."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.array(None)  # ragged lists; a tensor that is elsewhere or has a gradient
    if array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{said}={value!r}; it must be a NumPy array of numbers, here of shape {shape}, jobs first"
        )
    if array.shape != shape:
        raise ConfigError(f"{said} of shape {array.shape}; here it must be {shape}, jobs first")
    return array.astype(np.float64)


def _in_words(explain: Any, whose: str) -> Callable[[int], str]:
    """`explain`, if it is a function; what it returns is looked at when somebody asks."""
    wanted = f"{whose}: `explain` of a proposal must be a function of a job's number that returns the reason as str"
    if not callable(explain):
        raise ConfigError(f"{wanted}, not {explain!r}")

    def explained(i: int) -> str:
        reason = explain(i)
        if not isinstance(reason, str):
            raise ConfigError(f"{wanted}, but it returned {reason!r}")
        return reason

    return explained


def keep(measured: Measurement, reason: str | Callable[[int], str]) -> Proposal:
    """What is in force already."""
    said = reason if callable(reason) else lambda _: reason
    return Proposal(slots=measured.slots.copy(), pool=measured.pool.copy(), explain=said)


def where_sound(measured: Measurement, proposal: Proposal, sound: Bools | None = None) -> Proposal:
    """The proposal where measurements are sound, what is in force elsewhere."""
    sound = measured.sound() if sound is None else sound
    if sound.all():
        return proposal

    def explain(i: int) -> str:
        return proposal.explain(i) if sound[i] else unsound_reason(measured.take(slice(i, i + 1)))

    return Proposal(
        slots=np.where(sound[:, None], proposal.slots, measured.slots),
        pool=np.where(sound, proposal.pool, measured.pool),
        explain=explain,
        rate=proposal.rate,
    )


def unsound_reason(measured: Measurement) -> str:
    """Why nothing is decided on a measurement of one job."""
    if measured.killed[0]:
        return "keep: the job ran out of memory and is starting again"
    if np.isfinite(measured.delivered[0]) and measured.delivered[0] <= 0:
        return "keep: nothing was delivered in this interval, so there is nothing to decide on"
    return "keep: the measurements of this interval are incomplete or contradict each other"
