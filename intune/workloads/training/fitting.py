"""Fits a recommender: trains until a metric on held-out data stops rising, and keeps the best parameters seen.

The loop itself is `trainer.py`'s; here is when it ends, what is kept, what is written for TensorBoard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.training.checkpoint import CheckpointStore, read_checkpoint
from intune.workloads.training.events import logged
from intune.workloads.training.trainer import (
    Batch,
    BatchLoader,
    Evaluation,
    OnStep,
    Trainer,
    TrainOptions,
    TrainSummary,
)

Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long to train and what is best.

    Attributes:
        epochs: passes over the data, at most.
        metric: which one decides, as `evaluate` names it.
        higher_is_better: whether more of it is better.
        patience: evaluations in a row without a new best after which training ends; None for never.
        evaluate_epochs: epochs between two evaluations; there is one at the end in any case.
        max_steps: stop after this step; None for no limit.
        report_every: steps between two reads of the loss.
        seed: of what is random in training, such as dropout; not of the model's initial parameters.
        checkpoints: folder; None for none.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        resume: go on from the latest checkpoint there, or begin anew if there is none.
        tensorboard: folder for event files; None for none.
    """

    epochs: int = 100
    metric: str = "ndcg@10"
    higher_is_better: bool = True
    patience: int | None = 10
    evaluate_epochs: int = 1
    max_steps: int | None = None
    report_every: int = 10
    seed: int = 0
    checkpoints: Path | None = None
    checkpoint_every: int = 0
    resume: bool = False
    tensorboard: Path | None = None

    def __post_init__(self) -> None:
        if self.patience is not None:
            at_least("patience", self.patience, 1, "None never stops")
        at_least("evaluate_epochs", self.evaluate_epochs, 1)
        check_seed(self.seed)
        if self.resume and self.checkpoints is None:
            raise ConfigError("`resume` needs `checkpoints`, the folder to resume from; give both")
        self.train_options()

    def train_options(self) -> TrainOptions:
        """As the trainer takes them."""
        return TrainOptions(
            epochs=self.epochs,
            max_steps=self.max_steps,
            report_every=self.report_every,
            checkpoint_every=self.checkpoint_every,
        )


def check_seed(seed: int) -> None:
    """Raise a `ConfigError` for a seed that torch's generators do not take."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"`seed` must be from 0 to 2**63 - 1, but {seed} was found")


def require_metric(metric: str, there: Collection[str]) -> None:
    """Raise a `ConfigError` unless the metric is one of those that are evaluated."""
    if metric not in there:
        raise ConfigError(f"`metric`={metric!r} is not evaluated; there are {', '.join(sorted(there))}")


class EarlyStopping:
    """Remembers the best evaluation and the parameters it was made with; ends training when it gets no better.

    Args:
        metric: which decides.
        patience: evaluations in a row without a new best that are borne; None: any number.
        higher_is_better: whether more is better.
        every: epochs between evaluations.
    """

    def __init__(
        self, metric: str, *, patience: int | None = 10, higher_is_better: bool = True, every: int = 1
    ) -> None:
        self.metric = metric
        self.patience = patience
        self.higher_is_better = higher_is_better
        self.every = every
        self.epochs = 0
        self.best: Evaluation | None = None
        self.best_epochs = 0
        self.best_model: dict[str, Tensor] = {}
        self.history: list[tuple[int, float]] = []
        """Epochs and the metric after them, of each evaluation."""
        self._since = 0

    def due(self, epochs: int) -> bool:
        """Whether an evaluation is due after so many epochs."""
        return epochs % self.every == 0

    def look(self, epochs: int, evaluation: Evaluation, model: nn.Module) -> None:
        """Compare with the best so far.

        Raises:
            ConfigError: the metric is not among those evaluated, or is NaN.
        """
        require_metric(self.metric, evaluation.metrics)
        value = float(evaluation.metrics[self.metric])
        if math.isnan(value):
            raise ConfigError(
                f"{self.metric} is NaN after epoch {epochs}; lower the learning rate or check the data"
            )
        self.epochs = epochs
        self.history.append((epochs, value))
        if self.best is None or self._better(value, float(self.best.metrics[self.metric])):
            self.best, self.best_epochs, self._since = evaluation, epochs, 0
            self.best_model = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
            }
        else:
            self._since += 1

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    @property
    def looked(self) -> int:
        """Epochs at the last look; 0 before the first."""
        return self.history[-1][0] if self.history else 0

    @property
    def stopped(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self._since >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain values and the best parameters."""
        best = self.best
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "epochs": self.epochs,
            "since": self._since,
            "best_epochs": self.best_epochs,
            "best_step": None if best is None else best.step,
            "best_metrics": {} if best is None else dict(best.metrics),
            "best_model": dict(self.best_model),
            "history": [list(entry) for entry in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ConfigError: there the best was chosen by another metric, whose values cannot be compared with this one's.
        """
        before = state["metric"], state["higher_is_better"]
        if before != (self.metric, self.higher_is_better):
            raise ConfigError(
                f"the checkpoint's best model was chosen by {_said(*before)}, but now it would be by "
                f"{_said(self.metric, self.higher_is_better)}; use the same `metric`, or start anew in an empty "
                f"checkpoint folder"
            )
        self.epochs, self._since = state["epochs"], state["since"]
        self.best_epochs = state["best_epochs"]
        self.best = (
            None
            if state["best_step"] is None
            else Evaluation(step=state["best_step"], metrics=dict(state["best_metrics"]))
        )
        self.best_model = dict(state["best_model"])
        self.history = [(int(epochs), float(value)) for epochs, value in state["history"]]


def _said(metric: str, higher_is_better: bool) -> str:
    return f"the {'highest' if higher_is_better else 'lowest'} {metric}"


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """What a fit did.

    Attributes:
        train: what the trainer did in this call.
        best: the best evaluation on validation data; the model has the parameters it was made with. None if training
            was stopped before the first.
        best_epochs: epochs trained until then.
        epochs: epochs trained in all, the last one counted even if `max_steps` cut it short.
        history: epochs and the metric after them, of each evaluation.
        resumed_from: the checkpoint it went on from; None from the beginning.
    """

    train: TrainSummary
    best: Evaluation | None
    best_epochs: int
    epochs: int
    history: tuple[tuple[int, float], ...]
    resumed_from: Path | None


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: BatchLoader,
    *,
    loss: Callable[[Batch], Tensor],
    evaluate: Evaluate,
    options: FitOptions,
    metrics: Collection[str] | None = None,
    config: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> FitSummary:
    """Train `model` until the metric has stopped getting better; it ends with the best parameters.

    A run that was killed goes on with `options.resume`, and on the CPU ends as it would have ended.

    Args:
        model, optimizer, loader, loss, config, on_step: as of `Trainer`.
        evaluate: metrics on validation data of the model as it is; the test's must not be looked at here.
        options: how long, how often, what decides.
        metrics: names of what `evaluate` measures, to refuse another one before training; None if they are not known.

    Raises:
        ConfigError: `options.metric` is not evaluated, the loss or the metric is no number, or the checkpoints belong
            to another run.
        IntuneError: whatever the loader or a checkpoint raises.
    """
    if metrics is not None:
        require_metric(options.metric, metrics)
    store, latest = open_store(options.checkpoints, resume=options.resume)
    monitor = EarlyStopping(
        options.metric,
        patience=options.patience,
        higher_is_better=options.higher_is_better,
        every=options.evaluate_epochs,
    )
    with ExitStack() as stack:
        stack.enter_context(seeded(options.seed))
        trainer = Trainer(
            model,
            optimizer,
            loader,
            loss=loss,
            evaluate=evaluate,
            options=options.train_options(),
            store=store,
            config=config,
            monitor=monitor,
            on_step=on_step,
        )
        if options.tensorboard is not None:
            stack.enter_context(logged(trainer, options.tensorboard, split="valid"))
        if latest is not None:
            trainer.load_state_dict(read_checkpoint(latest))
        summary = trainer.fit()
    if summary.stopped_by is None and monitor.best_model:
        model.load_state_dict(monitor.best_model)
    return FitSummary(
        train=summary,
        best=monitor.best,
        best_epochs=monitor.best_epochs,
        epochs=monitor.epochs,
        history=tuple(monitor.history),
        resumed_from=latest,
    )


def open_store(folder: Path | None, *, resume: bool) -> tuple[CheckpointStore | None, Path | None]:
    """The store in `folder`, and the checkpoint to go on from.

    Raises:
        ConfigError: there are checkpoints, but `resume` was not asked for.
        StorageError: there is no such folder and none can be made.
    """
    if folder is None:
        return None, None
    store = CheckpointStore(directory=folder)
    latest = store.latest()
    if latest is not None and not resume:
        raise ConfigError(
            f"`checkpoints`={folder} holds those of another run, up to {latest.name}; "
            f"go on from them with `resume`, or choose another folder"
        )
    store.make_directory()
    return store, latest


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's own random numbers, which dropout draws from, begin at `seed`; afterwards all is as before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
