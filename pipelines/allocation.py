"""How many tasks of each stage may run at once, and within how much memory: what a tuner decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import whole

MOST_SLOTS = 4096
"""More slots than this for one stage is taken for a mistake: each is a thread."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Slots per stage, or one pool of slots shared by all.

    Attributes:
        slots: pairs ``(stage, slots)``; empty when a pool is shared.
        pool: slots shared by all stages, from which any ready task is taken, the one nearest to delivery
            first; 0 when stages have slots of their own.
        memory: bytes the pipeline may hold, at most the budget; None for the budget.
    """

    slots: tuple[tuple[str, int], ...] = ()
    pool: int = 0
    memory: int | None = None

    def __post_init__(self) -> None:
        slots = tuple([(name, _slots(name, count)) for name, count in self.slots])
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "pool", self.pool if slots else _slots("pool", self.pool))
        if self.memory is not None:
            memory = whole(self.memory)
            if memory is None or memory < 1:
                raise ConfigError(f"`memory`={self.memory!r} must be bytes above 0, or None for the budget")
            object.__setattr__(self, "memory", memory)

    @classmethod
    def shared(cls, slots: int, *, memory: int | None = None) -> Allocation:
        """One pool of `slots`: the untuned default, which balances stages that only compute by itself."""
        return cls(pool=slots, memory=memory)

    @classmethod
    def per_stage(cls, slots: Mapping[str, int], *, memory: int | None = None) -> Allocation:
        """Slots of its own for every stage named."""
        if not slots:
            raise ConfigError("`slots` is empty; name at least one stage")
        return cls(slots=tuple(slots.items()), memory=memory)

    @property
    def is_shared(self) -> bool:
        """Whether all stages draw on one pool."""
        return not self.slots

    @property
    def total(self) -> int:
        """Tasks that may run at once over all stages."""
        return self.pool if self.is_shared else sum(count for _, count in self.slots)

    def of(self, stage: str) -> int:
        """Tasks of `stage` that may run at once."""
        return self.pool if self.is_shared else dict(self.slots)[stage]

    def merged(self, change: Allocation | Mapping[str, int], stages: Sequence[str]) -> Allocation:
        """This allocation with `change` made, complete over `stages`.

        A mapping (or an allocation of some stages) leaves the others as they are; out of a shared pool, the
        others get as many slots as the pool had.

        Raises:
            ConfigError: a stage that the pipeline does not have, or a nonsensical number.
        """
        if isinstance(change, Mapping):
            change = Allocation.per_stage(change)
        elif not isinstance(change, Allocation):
            raise ConfigError(
                f"an allocation must be a mapping of stages to slots or an Allocation, "
                f"but {type(change).__name__} was given"
            )
        if change.is_shared:
            return change
        wanted = dict(change.slots)
        for name in wanted:
            if name not in stages:
                close = get_close_matches(str(name), stages, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"no stage {name!r}; the pipeline has {', '.join(stages)}{hint}")
        slots = tuple((name, wanted.get(name, self.of(name))) for name in stages)
        return replace(change, slots=slots, memory=self.memory if change.memory is None else change.memory)

    def as_dict(self) -> dict[str, Any]:
        """For logs: ``{"load": 2, …}`` or ``{"shared": 2}``."""
        return {"shared": self.pool} if self.is_shared else dict(self.slots)


def _slots(name: str, count: Any) -> int:
    slots = whole(count)
    if slots is None or not 1 <= slots <= MOST_SLOTS:
        raise ConfigError(f"slots of {name!r}={count!r} must be a whole number from 1 to {MOST_SLOTS}")
    return slots
