"""How the commands of models of users and items train and what they say of it; the commands are `train_graph.py`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from intune.cli.defaults import otherwise
from intune.cli.train import PeakMemory, displayed, leave_if_stopped, set_torch_threads
from intune.cli.train_options import FEEDING_SMALL, SAVING_AT_THE_END, FeedingSmall, Saving

if TYPE_CHECKING:
    from intune.workloads.training.recommender_job import JobResult, Recommender


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long to train, what decides, how the pipeline runs.

    Attributes:
        epochs: Passes over the data, at most.
        metric: Which metric on validation data decides when to stop and which parameters are kept.
        patience: Evaluations in a row without a new best after which training ends.
        evaluate_epochs: Epochs between two evaluations; there is one at the end in any case.
        max_steps: Stop after so many steps.
        saving: What is written while the model trains.
        feeding: What the command may use.
    """

    epochs: int = 100
    metric: str = "ndcg@10"
    patience: int = 10
    evaluate_epochs: int = 1
    max_steps: Annotated[int | None, otherwise("no limit")] = None
    saving: Saving = SAVING_AT_THE_END
    feeding: FeedingSmall = FEEDING_SMALL


def run(recommender: Recommender, options: RunOptions, *, title: str, shown: Sequence[str]) -> None:
    """Train, choose, judge and say how it went.

    Args:
        recommender: what is trained.
        options: as given on the command line.
        title: of the display.
        shown: metrics that the summary has, as `Recommender.evaluate` names them.

    Raises:
        SystemExit: a signal ended training.
        IntuneError: something cannot be used.
    """
    from intune.workloads.training.feeding import FeedOptions, feeding
    from intune.workloads.training.fitting import FitOptions
    from intune.workloads.training.recommender_job import run_job

    fit_options = FitOptions(
        epochs=options.epochs,
        metric=options.metric,
        patience=options.patience,
        evaluate_epochs=options.evaluate_epochs,
        max_steps=options.max_steps,
        seed=options.feeding.seed,
        **asdict(options.saving),
    )
    feed = FeedOptions(**options.feeding.feed())
    set_torch_threads(options.feeding.torch_threads)
    with feeding(recommender.pipeline, feed) as loader:
        steps = min(options.epochs * len(loader), options.max_steps or 2**62)
        with displayed(loader, steps, title=title, quiet=options.feeding.quiet) as (on_step, memory):
            result = run_job(recommender, loader, fit_options, on_step=on_step)
        leave_if_stopped(result.fit.train)
        print(summarise(result, memory, metric=options.metric, shown=shown))


def summarise(result: JobResult, memory: PeakMemory, *, metric: str, shown: Sequence[str]) -> str:
    """What is said at the end, a few lines.

    Args:
        result: of the job.
        memory: seen meanwhile.
        metric: which decided.
        shown: metrics of the test to say.
    """
    train, fit = result.fit.train, result.fit
    lines = []
    if fit.resumed_from is not None:
        lines.append(f"went on from {fit.resumed_from}")
    if train.rows:
        lines += [
            f"{train.rows:,} rows in {train.seconds:.1f} s, {fit.epochs} epochs, step {train.step:,}: "
            f"{train.rows_per_s:,.0f} rows/s while training, loss {train.loss:.4f}",
            f"waited for data {train.wait_share:.1%} of the time; evaluated for {train.evaluate_s:.1f} s",
        ]
    else:
        lines.append(f"step {train.step:,}: nothing was left to train")
    lines.append(memory.said(train))
    if fit.best is not None:
        lines.append(
            f"best after epoch {fit.best_epochs}: {metric} {fit.best.metrics[metric]:.4f} on validation"
        )
    lines.append(f"test: {_line(result.test, shown)}")
    if train.checkpoint is not None:
        lines.append(f"saved {train.checkpoint}")
    return "\n".join(lines)


def _line(metrics: Mapping[str, float], shown: Sequence[str]) -> str:
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in shown)
