"""`Tunable`: all that a tuner and the live environment know of a pipeline: what it counts, and how to give it slots.

`intune.pipelines.Loader` is one, and so are a wrapped `DataLoader` and a simulated job.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError
from intune.pipelines.metrics import PipelineStats


@runtime_checkable
class Tunable(Protocol):
    """Something whose stages can be given more or fewer slots while it runs.

    `stats` and `resize` may be called from another thread than the one that consumes it. Where it is over, `resize`
    raises `LoaderError`, and `stats` does so or tells what was counted; then an attribute ``closed`` may be true.
    One that looks at memory while it works may have ``least_left(seconds)``, see `Loader.least_left`; one that runs on
    other machines ``resources()``, see `resources.Resources`; one whose stages cannot share slots ``pools = False``.
    """

    @property
    def stages(self) -> Sequence[str]:
        """Names of the stages, in order; they never change."""

    @property
    def budget(self) -> Budget:
        """CPUs and bytes that it may use."""

    def stats(self) -> PipelineStats:
        """What was counted so far. Cheap, and stops nothing."""

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from now on, for the stages named; what runs goes on and nothing is lost.

        `Allocation.shared` is one pool of slots for all stages together, whichever has work; with ``pools = False``
        none is given.
        """


def check_tunable(value: object) -> Tunable:
    """`value`, if it can be tuned.

    Raises:
        ConfigError: it lacks something, or has no stages.
    """
    for name in ("stages", "budget", "stats", "resize"):
        if not hasattr(value, name):
            raise ConfigError(
                f"`tunable` must have `stages`, `budget`, `stats` and `resize`, but {type(value).__name__} has no "
                f"`{name}`; give a Loader, TunableDataLoader.wrap(…), or a class with these four"
            )
    assert isinstance(value, Tunable)
    budget: Any = value.budget
    if not isinstance(budget, Budget):
        raise ConfigError(
            f"`budget`={budget!r} of a {type(value).__name__} must be an intune.pipelines.Budget, as "
            "Budget.detect() gives one"
        )
    stages = tuple(value.stages or ())
    if not stages or not all(isinstance(name, str) for name in stages) or len(set(stages)) < len(stages):
        raise ConfigError(f"`stages`={stages!r} of `tunable` must be distinct names, one at least")
    return value


def has_pools(tunable: object) -> bool:
    """Whether its stages can share slots."""
    return getattr(tunable, "pools", True) is not False


def give(tunable: Tunable, allocation: Allocation | Mapping[str, int]) -> None:
    """Give it slots.

    Raises:
        ConfigError: a pool, where its stages cannot share one.
        IntuneError: the pipeline is over, or the allocation makes no sense.
    """
    if isinstance(allocation, Allocation) and allocation.is_shared and not has_pools(tunable):
        raise ConfigError(
            f"a {type(tunable).__name__} has `pools`=False, but a pool of {allocation.pool} was to be given; choose an "
            'agent that gives each stage slots of its own, as "planner" or registry.make("dqn", pools=False)'
        )
    tunable.resize(allocation)


def reads_resident(tunable: Tunable) -> bool:
    """Whether `stats(resident=True)` is understood: it then also counts what workers in other processes hold."""
    try:
        return "resident" in inspect.signature(tunable.stats).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
