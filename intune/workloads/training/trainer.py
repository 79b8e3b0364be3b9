"""A small trainer for every workload: one loop over a loader, timed, checkpointed, resumable, interruptible.

It knows no model: a workload gives the loss of a batch and, where it has held-out data, an evaluation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError, CorruptError
from intune.pipelines.memory import peak_resident_bytes
from intune.pipelines.schema import rows_of
from intune.pipelines.whole import at_least
from intune.workloads.training.checkpoint import CheckpointStore
from intune.workloads.training.stopping import Stop, Stopped, catching_signals

FORMAT = 1
"""Version of what a checkpoint holds."""

NO_MATTER = ("cutoffs", "device")
"""Options that do not decide how training goes on, and so are no part of what a checkpoint must agree with."""

Batch: TypeAlias = Mapping[str, Any]


class BatchLoader(Protocol):
    """What the trainer needs of a loader; `intune.pipelines.loader.Loader` is one.

    `epoch` is the one that the next loop reads; `load_state_dict` sets it.
    """

    epoch: int

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch that are still to come."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the next loop's epoch; does nothing when it is that one already."""

    def state_dict(self) -> dict[str, Any]:
        """Which batches have been handed over."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch after those."""

    def stats(self) -> Any:
        """What was measured so far."""


class Monitor(Protocol):
    """Looks at an evaluation after each epoch and may end training; `fitting.EarlyStopping` is one."""

    epochs: int
    """Epochs looked at, or passed over, so far."""

    @property
    def looked(self) -> int:
        """Epochs at the last look; 0 before the first."""

    def due(self, epochs: int) -> bool:
        """Whether to evaluate after so many epochs; where not, they are passed over."""

    def look(self, epochs: int, evaluation: Evaluation, model: nn.Module) -> None:
        """Take the evaluation in that was made after so many epochs, one cut short counted in."""

    @property
    def stopped(self) -> bool:
        """Whether training has come to its end."""

    def state_dict(self) -> dict[str, Any]:
        """All that decides what it will say, as a checkpoint can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


OnStep: TypeAlias = Callable[[int, float, Any], None]
"""Called with the step, the mean loss since the last call, and the loader's stats."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long to train and how often to look up.

    Attributes:
        epochs: passes over the data.
        max_steps: stop after this step even within an epoch; None for no limit.
        report_every: steps between calls of `on_step`; the loss is read, and checked, only then.
        evaluate_every: steps between evaluations; 0 for one at the end only.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
    """

    epochs: int = 1
    max_steps: int | None = None
    report_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("report_every", 1),
            ("evaluate_every", 0),
            ("checkpoint_every", 0),
        ):
            at_least(name, getattr(self, name), least)
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation after `step` steps measured."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What one call of `Trainer.fit` did.

    Attributes:
        step: steps done, those before a resume included.
        rows: rows trained on in this call.
        seconds: how long the call took, all told.
        loss: mean loss of the last reported steps; NaN if this call took none.
        wait_s: seconds spent waiting for the loader, the first batch not included.
        step_s: seconds spent in forward, backward and update.
        first_batch_s: seconds until the first batch; it starts the pipeline up, so it is kept apart.
        evaluate_s, checkpoint_s: seconds spent on these.
        peak_resident: the most resident memory that this process ever had, bytes.
        evaluations: in order of steps.
        checkpoint: the last one written; None without a store.
        stopped_by: number of the signal that ended training early; None if it ran to its end.
    """

    step: int
    rows: int
    seconds: float
    loss: float
    wait_s: float
    step_s: float
    first_batch_s: float
    evaluate_s: float
    checkpoint_s: float
    peak_resident: int
    evaluations: tuple[Evaluation, ...]
    checkpoint: Path | None
    stopped_by: int | None

    @property
    def rows_per_s(self) -> float:
        """Rows per second of waiting and training; evaluations, checkpoints and the start not counted."""
        seconds = self.wait_s + self.step_s
        return self.rows / seconds if seconds > 0 else 0.0

    @property
    def wait_share(self) -> float:
        """Share of that time in which the trainer waited for data, 0 to 1."""
        seconds = self.wait_s + self.step_s
        return self.wait_s / seconds if seconds > 0 else 0.0


class Trainer:
    """Trains a model on the batches of a loader.

    Args:
        model: put into training mode.
        optimizer: any of torch's, over the model's parameters.
        loader: where batches come from; the caller closes it.
        loss: scalar loss of a batch.
        evaluate: metrics of the model as it is; None where there is nothing held out.
        options: how long, how often.
        store: where checkpoints go; None for none.
        config: what a checkpoint belongs to, plain values; a resume with another one is refused.
        monitor: looks at an evaluation after each epoch and may end training; None to train all epochs.
        on_step: see `OnStep`; for a live display.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: BatchLoader,
        *,
        loss: Callable[[Batch], Tensor],
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        options: TrainOptions | None = None,
        store: CheckpointStore | None = None,
        config: Mapping[str, Any] | None = None,
        monitor: Monitor | None = None,
        on_step: OnStep | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.options = options if options is not None else TrainOptions()
        self.step = 0
        self._loss = loss
        self.evaluate = evaluate
        self._store = store
        self._config = dict(config or {})
        if monitor is not None and evaluate is None:
            raise ConfigError("`monitor` needs `evaluate`, whose metrics it looks at; give both")
        self._monitor = monitor
        self.on_step = on_step
        self._clock = clock
        self._position: dict[str, Any] | None = None
        self._saved: tuple[int, Path] | None = None
        self._epochs = 0
        self._begin_call()

    def _begin_call(self) -> None:
        """Forget what the call of `fit` before has measured."""
        self._evaluations: list[Evaluation] = []
        self._times = dict.fromkeys(("wait", "step", "first", "evaluate", "checkpoint"), 0.0)
        self._rows = 0
        self._unread: list[Tensor] = []
        self._mean_loss = math.nan

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on: parameters, optimiser, position in the data, random states."""
        return {
            "format": FORMAT,
            "step": self.step,
            "config": self._config,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self._position if self._position is not None else self.loader.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": self._cuda_random_states()},
            "monitor": None if self._monitor is None else self._monitor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            CorruptError: it is not a trainer's state, or one of another version.
            ConfigError: it was made with another configuration, or for a model of another shape; the message names
                what differs.
            LoaderError: its position belongs to other data or another pipeline.
        """
        missing = {"format", "step", "config", "model", "optimizer", "loader", "random"} - state.keys()
        if missing:
            raise CorruptError(
                f"the checkpoint has no {', '.join(sorted(missing))}; it was not written by a trainer"
            )
        if state["format"] != FORMAT:
            raise CorruptError(f"the checkpoint has format {state['format']}, but this is format {FORMAT}")
        differing = [
            f"{name} was {state['config'].get(name)!r} and is {self._config.get(name)!r}"
            for name in sorted(state["config"].keys() | self._config.keys())
            if _plain(state["config"].get(name)) != _plain(self._config.get(name))
        ]
        if differing:
            raise ConfigError(
                f"the checkpoint was made with another configuration: {'; '.join(differing)}; "
                f"use the same, or start anew in an empty checkpoint folder"
            )
        # First, since it knows other data by their files, which says more than a table of another size.
        self.loader.load_state_dict(state["loader"])
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"the checkpoint does not fit this model ({reason}); use the same model and data, or start anew in an "
                f"empty checkpoint folder"
            ) from error
        torch.set_rng_state(state["random"]["cpu"])
        # There may be other devices now, and fewer.
        for device, random in zip(self._cuda_devices(), state["random"]["cuda"], strict=False):
            torch.cuda.set_rng_state(random, device)
        if self._monitor is not None and state.get("monitor") is not None:
            self._monitor.load_state_dict(state["monitor"])
        self.step = state["step"]
        self._position = state["loader"]

    def fit(self) -> TrainSummary:
        """Train to the end, or until SIGINT, SIGTERM or SIGHUP: then the step under way is finished and saved.

        A second signal raises `KeyboardInterrupt` at once. Signals are only caught when called from the main
        thread. Called again, it goes on after the last step.

        Raises:
            ConfigError: the loss or a parameter is not a number any more.
            IntuneError: whatever the loader or a checkpoint raises.
        """
        began = self._clock()
        self.model.train()
        self._begin_call()
        if self._position is None:
            self._position = self.loader.state_dict()
        else:
            # A loader whose loop was broken off would begin the epoch anew.
            self.loader.load_state_dict(self._position)
        with catching_signals() as stop:
            try:
                self._run(stop)
                self._report()
                self._save()
                self._finish(stop)
            except Stopped:
                self._report()
                self._save()
        return TrainSummary(
            step=self.step,
            rows=self._rows,
            seconds=self._clock() - began,
            loss=self._mean_loss,
            wait_s=self._times["wait"],
            step_s=self._times["step"],
            first_batch_s=self._times["first"],
            evaluate_s=self._times["evaluate"],
            checkpoint_s=self._times["checkpoint"],
            peak_resident=peak_resident_bytes(),
            evaluations=tuple(self._evaluations),
            checkpoint=None if self._saved is None else self._saved[1],
            stopped_by=stop.signal,
        )

    def _run(self, stop: Stop) -> None:
        """Train; `_epochs` is then how many epochs were begun."""
        options = self.options
        for epoch in range(self.loader.epoch, options.epochs):
            self._epochs = epoch
            # Here too, since a run may have been killed after an epoch's last step and before its evaluation.
            if self._done():
                self._epochs += self.step > epoch * len(self.loader)
                return
            if self._look(epoch, stop):
                return
            self.loader.set_epoch(epoch)
            self._epochs += 1
            for batch in self._timed_batches(stop):
                self._train_step(batch)
                if self.step % options.report_every == 0:
                    self._report()
                if options.checkpoint_every and self.step % options.checkpoint_every == 0:
                    self._save()
                if options.evaluate_every and self.step % options.evaluate_every == 0:
                    with stop.interruptible():
                        self._evaluate_now()
                stop.check()
                if self._done():
                    return
        self._epochs = max(options.epochs, self.loader.epoch)
        self._look(options.epochs, stop)

    def _finish(self, stop: Stop) -> None:
        """Evaluate what training has ended with, and let the monitor look at it whether or not it is due.

        After the last save: a run that goes on from there must not know of a look that it would not have had.
        """
        with stop.interruptible():
            self._evaluate_now()
        if self._monitor is not None and self._epochs > self._monitor.looked:
            self._monitor.look(self._epochs, self._evaluations[-1], self.model)

    def _look(self, epochs: int, stop: Stop) -> bool:
        """Let the monitor look at the model after so many epochs; whether it ends training."""
        monitor = self._monitor
        if monitor is None:
            return False
        if epochs > monitor.epochs:
            if monitor.due(epochs):
                with stop.interruptible():
                    self._evaluate_now()
                monitor.look(epochs, self._evaluations[-1], self.model)
                # A checkpoint of this step, written before the look, does not know what it found.
                self._saved = None
            else:
                monitor.epochs = epochs
        return monitor.stopped

    def _cuda_devices(self) -> list[torch.device]:
        """Those that the model is on: to ask another one for its random state would open a context there."""
        found = {value.device for value in self.model.parameters() if value.device.type == "cuda"}
        return sorted(found, key=lambda device: device.index)

    def _cuda_random_states(self) -> list[Tensor]:
        return [torch.cuda.get_rng_state(device) for device in self._cuda_devices()]

    def _done(self) -> bool:
        return self.options.max_steps is not None and self.step >= self.options.max_steps

    def _timed_batches(self, stop: Stop) -> Iterator[Batch]:
        iterator: Iterator[Batch] | None = None
        while True:
            began = self._clock()
            with stop.interruptible():
                if iterator is None:
                    iterator = iter(self.loader)
                batch = next(iterator, None)
            if batch is None:
                return
            self._times["wait" if self._rows else "first"] += self._clock() - began
            yield batch

    def _train_step(self, batch: Batch) -> None:
        began = self._clock()
        loss = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._unread.append(loss.detach())
        self.step += 1
        self._rows += rows_of(next(iter(batch.values())))
        # Taken now, because a wait that a signal breaks off may have lost the batch it was about to return.
        self._position = self.loader.state_dict()
        self._times["step"] += self._clock() - began

    def _report(self) -> None:
        if not self._unread:
            return
        began = self._clock()
        # The one place where the loss is read: on CUDA that waits for the device, so it counts as training.
        self._mean_loss = float(torch.stack(self._unread).mean())
        self._times["step"] += self._clock() - began
        self._unread.clear()
        if not math.isfinite(self._mean_loss):
            raise ConfigError(
                f"the loss is {self._mean_loss} after step {self.step}; lower `learning_rate`, "
                f"and replace missing and infinite values in the transform; nothing was saved since"
            )
        if self.on_step is not None:
            self.on_step(self.step, self._mean_loss, self.loader.stats())

    def _save(self) -> None:
        if self._store is None or (self._saved is not None and self._saved[0] == self.step):
            return
        self._report()
        began = self._clock()
        self._check_parameters()
        self._saved = (self.step, self._store.save(self.step, self.state_dict()))
        self._times["checkpoint"] += self._clock() - began

    def _check_parameters(self) -> None:
        """Raise a `ConfigError` where a parameter is no number: the last step's loss was computed before its update."""
        for name, parameter in self.model.named_parameters():
            # The least and the highest number are NaN where any is, and take no memory.
            if parameter.numel() and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all():
                raise ConfigError(
                    f"parameter `{name}` is not finite after step {self.step}; lower `learning_rate`, and replace "
                    f"missing and infinite values in the transform; nothing was saved since"
                )

    def _evaluate_now(self) -> None:
        if self.evaluate is None or (self._evaluations and self._evaluations[-1].step == self.step):
            return
        began = self._clock()
        self.model.eval()
        try:
            self._evaluations.append(Evaluation(step=self.step, metrics=self.evaluate()))
        finally:
            self.model.train()
        self._times["evaluate"] += self._clock() - began


def _plain(value: Any) -> Any:
    """Tuples as lists: which of the two a configuration holds does not matter."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
