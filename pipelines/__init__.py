"""What runs: plan, stages, scheduler, executors, metrics, memory. Knows no agent."""

from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget
from intune.pipelines.loader import Loader
from intune.pipelines.metrics import PipelineStats, StageStats
from intune.pipelines.pipeline import Pipeline
from intune.pipelines.schema import Ragged

__all__ = ["Allocation", "Budget", "Loader", "Pipeline", "PipelineStats", "Ragged", "StageStats"]
