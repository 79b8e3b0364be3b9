"""The loader that feeds a workload, tuned while the model trains if somebody is named to do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from intune.pipelines import Loader, Pipeline


@contextmanager
def fed(pipeline: Pipeline, agent: str | None, **options: Any) -> Iterator[Loader]:
    """A loader over `pipeline`, closed at the end of the block.

    Args:
        pipeline: what to run.
        agent: who tunes it (a name of `intune.agents.registry`); None for nobody.
        **options: of the loader.

    Raises:
        ConfigError: no such agent.
    """
    with pipeline.loader(**options) as loader:
        if agent is None:
            yield loader
            return
        from intune.tuning import tune

        # Slots that were asked for go before those of an earlier run.
        with tune(loader, agent=agent, allocation=options.get("allocation")) as tuned:
            # All that a trainer asks of a loader, a tuned one hands on.
            yield cast(Loader, tuned)
