"""What the commands of all recommenders have in common: options, the display, the summary.

A family's module makes a `Recommender` and hands it to `run`; see `train_graph.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from intune.cli.defaults import otherwise
from intune.cli.train import PeakMemory, how_to_resume, parse_slots

if TYPE_CHECKING:
    from intune.pipelines import PipelineStats
    from intune.workloads.recommender_job import JobResult, Recommender


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long to train, what decides, how the pipeline runs.

    Attributes:
        epochs: Passes over the data, at most.
        metric: Which metric on validation data decides when to stop and which parameters are kept.
        patience: Evaluations in a row without a new best after which training ends.
        evaluate_epochs: Epochs between two evaluations; there is one at the end in any case.
        max_steps: Stop after so many steps.
        executor: What runs the pipeline: threads of this process, or Ray; auto takes Ray where a cluster is named.
        cpus: CPUs that the pipeline may keep busy.
        memory: Bytes that the pipeline's blocks may hold, such as 2GiB.
        slots: How many tasks of a stage run at once, such as load=2,negatives=1.
        agent: Who tunes the pipeline while the model trains, such as dqn or planner.
        checkpoints: Folder for checkpoints; the latest three are kept.
        checkpoint_every: Steps between two checkpoints; 0 for one at the end only.
        resume: Go on from the latest checkpoint in CHECKPOINTS; begin anew if there is none.
        tensorboard: Folder for event files of TensorBoard.
        torch_threads: Threads of the model's own arithmetic on the CPU.
        quiet: Show no progress, only the summary.
    """

    epochs: int = 100
    metric: str = "ndcg@10"
    patience: int = 10
    evaluate_epochs: int = 1
    max_steps: Annotated[int | None, otherwise("no limit")] = None
    executor: Literal["auto", "threads", "ray"] = "auto"
    cpus: Annotated[int | None, otherwise("all that this job may use")] = None
    memory: Annotated[str | None, otherwise("a quarter of what is free")] = None
    slots: Annotated[str | None, otherwise("one pool for all stages, a slot per CPU")] = None
    agent: Annotated[str | None, otherwise("nobody")] = None
    checkpoints: Annotated[Path | None, otherwise("none are written")] = None
    checkpoint_every: int = 0
    resume: bool = False
    tensorboard: Annotated[Path | None, otherwise("none are written")] = None
    torch_threads: int = 1
    quiet: bool = False


Run = Annotated[RunOptions, tyro.conf.OmitArgPrefixes]


def run(
    recommender: Recommender, options: RunOptions, *, title: str, seed: int, shown: Sequence[str]
) -> None:
    """Train, choose, judge and say how it went.

    Args:
        recommender: what is trained.
        options: as given on the command line.
        title: of the display.
        seed: of what is random in training.
        shown: metrics that the summary has, as `Recommender.evaluate` names them.

    Raises:
        SystemExit: a signal ended training.
        IntuneError: something cannot be used.
    """
    import torch

    from intune.display import Display
    from intune.pipelines.errors import ConfigError
    from intune.workloads.fitting import FitOptions
    from intune.workloads.recommender_job import FeedOptions, feeding, run_job

    if options.torch_threads < 1:
        raise ConfigError(f"`torch_threads` must be at least 1, but {options.torch_threads} was found")
    fit_options = FitOptions(
        epochs=options.epochs,
        metric=options.metric,
        patience=options.patience,
        evaluate_epochs=options.evaluate_epochs,
        max_steps=options.max_steps,
        seed=seed,
        checkpoints=options.checkpoints,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        tensorboard=options.tensorboard,
    )
    feed = FeedOptions(
        executor=options.executor,
        cpus=options.cpus,
        memory=options.memory,
        slots={} if options.slots is None else parse_slots(options.slots),
        agent=options.agent,
    )
    torch.set_num_threads(options.torch_threads)
    with feeding(recommender.pipeline, feed) as loader:
        steps = options.epochs * len(loader)
        memory_seen = PeakMemory(lambda: loader.stats(resident=True))
        display = Display(
            steps if options.max_steps is None else min(steps, options.max_steps),
            title=f"{title} on {loader.executor}",
            mode="quiet" if options.quiet else "auto",
            read=memory_seen.read,
        )
        with display:
            result = run_job(
                recommender,
                loader,
                fit_options,
                on_step=memory_seen.on_step if options.quiet else display.on_step,
            )
        stats = memory_seen.read()
    if result.fit.train.stopped_by is not None:
        print(how_to_resume(result.fit.train), file=sys.stderr)
        raise SystemExit(128 + result.fit.train.stopped_by)
    print(summarise(result, stats, memory_seen.bytes, metric=options.metric, shown=shown))


def summarise(
    result: JobResult, stats: PipelineStats, resident: int, *, metric: str, shown: Sequence[str]
) -> str:
    """What is said at the end, a few lines.

    Args:
        result: of the job.
        stats: of the pipeline, at the end.
        resident: the most resident memory seen, bytes.
        metric: which decided.
        shown: metrics of the test to say.
    """
    from intune.pipelines.budget import format_bytes

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
    lines.append(
        f"peak memory {format_bytes(stats.memory_peak)} in blocks, {format_bytes(stats.memory_limit)} allowed; "
        f"{format_bytes(max(resident, train.peak_resident))} resident"
    )
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
