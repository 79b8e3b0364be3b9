"""One job's memory, shared by its loaders: for a time they all hold blocks."""

from __future__ import annotations

from dataclasses import replace

from intune.pipelines import Budget
from intune.pipelines.budget import LEAST_MEMORY, format_bytes
from intune.pipelines.errors import ConfigError


def shared(budget: Budget, *parts: int) -> list[Budget]:
    """Budgets of loaders that get so many parts of the memory each, and all of the CPUs.

    Raises:
        ConfigError: one would get less than a loader needs at least.
    """
    whole, least = sum(parts), min(parts)
    if budget.memory * least // whole < LEAST_MEMORY:
        raise ConfigError(
            f"`memory`={format_bytes(budget.memory)} is shared by training and evaluation, of which one needs "
            f"{format_bytes(LEAST_MEMORY)} at least; give {format_bytes(-(-LEAST_MEMORY * whole // least))} or more"
        )
    return [replace(budget, memory=budget.memory * part // whole) for part in parts]
