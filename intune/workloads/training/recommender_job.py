"""From a recommender and its pipeline to a trained and judged model; what every family's command runs.

A family gives a `Recommender`; feeding, fitting and judging are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from intune.pipelines import Loader, Pipeline
from intune.workloads.training.fitting import FitOptions, FitSummary, fit
from intune.workloads.training.trainer import Batch, OnStep


class Recommender(Protocol):
    """A model on a data set, ready to be trained."""

    @property
    def model(self) -> nn.Module:
        """Whose parameters are trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over the model's parameters."""

    @property
    def pipeline(self) -> Pipeline:
        """From Parquet to the batches that `loss` takes, device included."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What the model is and how it is trained, plain values: a checkpoint of another one is refused."""

    def prepare(self) -> Collection[str]:
        """Find what is held out, before anything is trained; the names of what `evaluate` measures."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar loss of a batch."""

    def evaluate(self, split: Literal["valid", "test"]) -> Mapping[str, float]:
        """Metrics of the model as it is, on what is held out in `split`. The model is in evaluation mode."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job gave.

    Attributes:
        fit: how training went.
        test: metrics of the best model on the test's data, looked at once, after training; empty if training was
            stopped by a signal.
    """

    fit: FitSummary
    test: Mapping[str, float]


def run_job(
    recommender: Recommender,
    loader: Loader,
    options: FitOptions,
    *,
    on_step: OnStep | None = None,
    judge: Callable[[], Mapping[str, float]] | None = None,
) -> JobResult:
    """Train on what `loader` brings, choose by validation, then judge once by the test.

    Args:
        recommender: what is trained.
        loader: over its pipeline; see `feeding.feeding`.
        options: how long, what decides.
        on_step: see `OnStep`.
        judge: in place of the recommender's own evaluation on the test.

    Raises:
        IntuneError: data, checkpoint or an option cannot be used, or the loss is no number.
    """
    summary = fit(
        recommender.model,
        recommender.optimizer,
        loader,
        loss=recommender.loss,
        evaluate=lambda: recommender.evaluate("valid"),
        options=options,
        metrics=recommender.prepare(),
        config=recommender.config,
        on_step=on_step,
    )
    test: Mapping[str, float] = {}
    if summary.train.stopped_by is None:
        recommender.model.eval()
        test = judge() if judge is not None else recommender.evaluate("test")
    return JobResult(fit=summary, test=test)
