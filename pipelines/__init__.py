"""What runs: plan, stages, scheduler, executors, metrics, memory. Knows no agent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intune.pipelines.allocation import Allocation
    from intune.pipelines.budget import Budget
    from intune.pipelines.loader import Loader
    from intune.pipelines.metrics import PipelineStats, StageStats
    from intune.pipelines.pipeline import Pipeline
    from intune.pipelines.schema import Ragged

_HOMES = {
    "Allocation": "allocation",
    "Budget": "budget",
    "Loader": "loader",
    "Pipeline": "pipeline",
    "PipelineStats": "metrics",
    "Ragged": "schema",
    "StageStats": "metrics",
}

__all__ = ["Allocation", "Budget", "Loader", "Pipeline", "PipelineStats", "Ragged", "StageStats"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: a worker process needs a few of the modules, and starts in half of the time.
    if name in _HOMES:
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
