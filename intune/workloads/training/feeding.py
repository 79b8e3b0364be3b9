"""The loader that feeds a workload, tuned while the model trains if somebody is named to do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

from intune.pipelines import Budget, Loader, Pipeline


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """How the pipeline runs.

    Attributes:
        executor: as of `Loader`.
        cpus, memory: its budget, as of `Budget.detect`; None for what the job may use.
        slots: slots per stage to begin with; empty for one shared pool.
        agent: who tunes the pipeline while the model trains (a name of `intune.agents.registry`); None for nobody.
    """

    executor: Literal["auto", "threads", "ray"] = "auto"
    cpus: int | None = None
    memory: int | str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    agent: str | None = None

    def budget(self) -> Budget:
        """Of the whole job."""
        return Budget.detect(cpus=self.cpus, memory=self.memory)


@contextmanager
def feeding(pipeline: Pipeline, options: FeedOptions, budget: Budget | None = None) -> Iterator[Loader]:
    """A loader over `pipeline`, closed at the end of the block.

    Args:
        pipeline: what to run.
        options: how.
        budget: the loader's part of the job's; all of it by default.

    Raises:
        ConfigError: no such agent.
    """
    allocation = dict(options.slots) or None
    budget = options.budget() if budget is None else budget
    with pipeline.loader(executor=options.executor, budget=budget, allocation=allocation) as loader:
        if options.agent is None:
            yield loader
            return
        from intune.tuning import tune

        # Slots that were asked for go before those of an earlier run.
        with tune(loader, agent=options.agent, allocation=allocation) as tuned:
            # All that a trainer asks of a loader, a tuned one hands on.
            yield cast(Loader, tuned)
