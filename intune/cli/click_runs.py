"""How the commands of click models train and what they say of it; the commands are `train_click.py`'s."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intune.cli.defaults import otherwise
from intune.cli.train import PeakMemory, displayed, leave_if_stopped, set_torch_threads
from intune.cli.train_options import FEEDING, SAVING, Feeding, Saving

if TYPE_CHECKING:
    from intune.workloads.clicks.job import ReadyJob
    from intune.workloads.training.trainer import OnStep, TrainSummary

PRESET = otherwise("the preset's")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How to train, and with what.

    Attributes:
        epochs: Passes over the data.
        max_steps: Stop after so many steps.
        batch_size: Rows per step.
        optimizer: How parameters are updated.
        learning_rate: Of all parameters, embedding tables included.
        schedule: Whether learning rates stay what they are or fall to zero.
        shuffle: Row groups whose rows are mixed, 0 to keep the order of the files.
        evaluate_every: Steps between two evaluations on the held-out rows; 0 for one at the end only.
        device: Where the model is: cpu, cuda or cuda:N.
        saving: What is written while the model trains.
        feeding: What the command may use.
    """

    epochs: int = 1
    max_steps: Annotated[int | None, otherwise("no limit")] = None
    batch_size: Annotated[int | None, PRESET] = None
    optimizer: Annotated[Literal["sgd", "adagrad", "rowwise-adagrad", "adam"] | None, PRESET] = None
    learning_rate: Annotated[float | None, PRESET] = None
    schedule: Annotated[Literal["constant", "linear"] | None, PRESET] = None
    shuffle: int = 8
    evaluate_every: int = 0
    device: str = "cpu"
    saving: Saving = SAVING
    feeding: Feeding = FEEDING

    def start(self, title: str, **model: Any) -> None:
        """Train a `ClickJob` with these settings and what else `model` says of it."""
        from intune.workloads.clicks.job import ClickJob, ready
        from intune.workloads.training.trainer import TrainOptions

        job = ClickJob(
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            seed=self.feeding.seed,
            shuffle=self.shuffle,
            device=self.device,
            checkpoints=self.saving.checkpoints,
            resume=self.saving.resume,
            tensorboard=self.saving.tensorboard,
            options=TrainOptions(
                epochs=self.epochs,
                max_steps=self.max_steps,
                evaluate_every=self.evaluate_every,
                checkpoint_every=self.saving.checkpoint_every,
            ),
            **self.feeding.feed(),
            **model,
        )
        set_torch_threads(self.feeding.torch_threads)
        with ready(job) as run:
            train(run, title=title, quiet=self.feeding.quiet)


def train(run: ReadyJob, *, title: str, quiet: bool) -> None:
    """Train to the end and say how it went; leave with 128 plus its number if a signal has stopped it."""
    if run.resumed_from is not None:
        print(f"intune: going on from {run.resumed_from}", file=sys.stderr)
    trainer = run.trainer
    with displayed(run.loader, run.steps, title=title, quiet=quiet) as (on_step, memory):
        trainer.on_step = _after(trainer.on_step, on_step)
        summary = trainer.fit()
    leave_if_stopped(summary)
    print(summarise(summary, memory, run.data.best_auc))


def _after(first: OnStep | None, then: OnStep) -> OnStep:
    """Call both, where the job has somebody of its own who looks at steps."""
    if first is None:
        return then

    def on_step(step: int, loss: float, stats: Any) -> None:
        first(step, loss, stats)
        then(step, loss, stats)

    return on_step


def summarise(summary: TrainSummary, memory: PeakMemory, best_auc: float | None) -> str:
    """What is said at the end, a few lines.

    Args:
        summary: of training.
        memory: seen meanwhile.
        best_auc: what a perfect model would reach on the held-out rows; None where that is not known.
    """
    if summary.rows:
        lines = [
            f"{summary.rows:,} rows in {summary.seconds:.1f} s, step {summary.step:,}: "
            f"{summary.rows_per_s:,.0f} rows/s while training, loss {summary.loss:.4f}",
            f"waited for data {summary.wait_share:.1%} of the time; first batch after {summary.first_batch_s:.2f} s",
        ]
    else:
        lines = [f"step {summary.step:,}: nothing was left to train"]
    lines.append(memory.said(summary))
    lines.append(
        _held_out(summary.evaluations[-1].metrics, best_auc) if summary.evaluations else "no rows held out"
    )
    if summary.checkpoint is not None:
        lines.append(f"saved {summary.checkpoint}")
    return "\n".join(lines)


def _held_out(metrics: Mapping[str, float], best_auc: float | None) -> str:
    if metrics["positives"] in (0, metrics["rows"]):
        only = 1 if metrics["positives"] else 0
        return (
            f"log loss {metrics['log_loss']:.4f} on {metrics['rows']:,} held-out rows; no AUC, which compares rows of "
            f"both labels, and all of these have {only}: hold out others"
        )
    line = f"held-out AUC {metrics['auc']:.4f} on {metrics['rows']:,} rows"
    if best_auc is not None:
        line += f", {best_auc - metrics['auc']:.4f} below the best that the data allows, {best_auc:.4f}"
    return (
        f"{line}; log loss {metrics['log_loss']:.4f}, normalised entropy {metrics['normalised_entropy']:.4f}"
    )
