"""`intune train …`: train a model through a live-resizable input pipeline. What is done is in `intune.workloads`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from intune.pipelines import PipelineStats
    from intune.workloads.training import TrainSummary

DLRM_HELP = """\
Train DLRM (arXiv 1906.00091) on click logs in Parquet, for one pass by default.

DATA is a folder made by `intune data`, of which test/ is held out; or a file, folder, glob or URI (s3://…) of Parquet
files with the columns label, I1 … I13 and C1 … C26, of which the last file is held out. Categories may be numbers, text
or lists of either; they are hashed into tables.

At the end it prints rows per second, the share of time the trainer waited for data, peak memory, and the held-out AUC
beside the best that the data allows, where that is known.

With --checkpoints, a run that was killed or stopped (Ctrl-C finishes the step under way and saves) goes on with
--resume, and on the CPU ends with the same model, bit for bit.

Examples:
  intune train dlrm --data data
  intune train dlrm --data data --executor ray --cpus 2 --memory 2GiB
  intune train dlrm --data data --slots load=4,transform=2 --checkpoints runs/first --resume
  intune train dlrm --data 's3://bucket/day_*.parquet' --preset terabyte --device cuda
"""


def _otherwise(default: str) -> object:
    """Help of an option that may be left out: what happens then, in place of "None"."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {default})")


def dlrm(
    *,
    data: str,
    executor: Literal["auto", "threads", "ray"] = "auto",
    preset: Literal["demo", "kaggle", "terabyte", "mlperf"] = "demo",
    epochs: int = 1,
    max_steps: Annotated[int | None, _otherwise("no limit")] = None,
    batch_size: Annotated[int | None, _otherwise("the preset's")] = None,
    optimizer: Annotated[
        Literal["sgd", "adagrad", "rowwise-adagrad"] | None, _otherwise("the preset's")
    ] = None,
    learning_rate: Annotated[float | None, _otherwise("the preset's")] = None,
    table_rows: Annotated[int | None, _otherwise("the preset's")] = None,
    seed: int = 0,
    shuffle: int = 8,
    cpus: Annotated[int | None, _otherwise("all that this job may use")] = None,
    memory: Annotated[str | None, _otherwise("a quarter of what is free")] = None,
    slots: Annotated[str | None, _otherwise("one pool for all stages, a slot per CPU")] = None,
    checkpoints: Annotated[Path | None, _otherwise("none are written")] = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    evaluate_every: int = 0,
    device: str = "cpu",
    torch_threads: Annotated[int | None, _otherwise("half of the CPUs, at least 1")] = None,
    quiet: bool = False,
) -> None:
    """Train DLRM on click logs.

    Args:
        data: Where the click logs are.
        executor: What runs the pipeline: threads of this process, or Ray; auto takes Ray where a cluster is named.
        preset: Size of the model and how it is trained; demo is made for two cores.
        epochs: Passes over the data.
        max_steps: Stop after so many steps.
        batch_size: Rows per step.
        optimizer: How parameters are updated.
        learning_rate: Of all parameters, embedding tables included.
        table_rows: Rows of the largest embedding table; ids are hashed into it.
        seed: Decides the initial model and the order of the rows.
        shuffle: Row groups whose rows are mixed, 0 to keep the order of the files.
        cpus: CPUs that the pipeline may keep busy.
        memory: Bytes that the pipeline's blocks may hold, such as 2GiB.
        slots: How many tasks of a stage run at once, such as load=2,transform=1.
        checkpoints: Folder for checkpoints; the latest three are kept.
        checkpoint_every: Steps between two checkpoints; 0 for one at the end only.
        resume: Go on from the latest checkpoint in CHECKPOINTS; begin anew if there is none.
        evaluate_every: Steps between two evaluations on the held-out rows; 0 for one at the end only.
        device: Where the model is: cpu, cuda or cuda:N.
        torch_threads: Threads of the model's own arithmetic on the CPU. They wait for each other by spinning: on two
            cores that the pipeline shares, two are slower than one.
        quiet: Show no progress, only the summary.
    """
    import torch

    from intune.display import Display
    from intune.pipelines.budget import Usable
    from intune.workloads.click_job import ClickJob, ready
    from intune.workloads.click_tables import TableChoice
    from intune.workloads.training import TrainOptions

    job = ClickJob(
        data=data,
        executor=executor,
        preset=preset,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        embedding=TableChoice(rows=table_rows),
        seed=seed,
        shuffle=shuffle,
        cpus=cpus,
        memory=memory,
        slots={} if slots is None else parse_slots(slots),
        device=device,
        checkpoints=checkpoints,
        resume=resume,
        options=TrainOptions(
            epochs=epochs,
            max_steps=max_steps,
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
        ),
    )
    torch.set_num_threads(_threads(torch_threads, Usable.detect().cpus))
    with ready(job) as run:
        if run.resumed_from is not None:
            print(f"intune: going on from {run.resumed_from}", file=sys.stderr)
        memory_seen = PeakMemory(lambda: run.loader.stats(resident=True))
        display = Display(
            run.steps,
            title=f"DLRM on {run.loader.executor}",
            mode="quiet" if quiet else "auto",
            read=memory_seen.read,
        )
        run.trainer.on_step = memory_seen.on_step if quiet else display.on_step
        with display:
            summary = run.trainer.fit()
        stats = memory_seen.read()
        best = run.data.best_auc
    if summary.stopped_by is not None:
        print(how_to_resume(summary), file=sys.stderr)
        raise SystemExit(128 + summary.stopped_by)
    print(summarise(summary, stats, memory_seen.bytes, best))


class PeakMemory:
    """Reads stats with resident memory and remembers the most of it."""

    EVERY = 32
    """Calls of `on_step` between two readings, each of which takes some milliseconds."""

    def __init__(self, read: Callable[[], PipelineStats]) -> None:
        self._read = read
        self._calls = 0
        self.bytes = 0

    def read(self) -> PipelineStats:
        """Stats, resident memory included."""
        stats = self._read()
        self.bytes = max(self.bytes, stats.memory_resident)
        return stats

    def on_step(self, step: int, loss: float, stats: PipelineStats) -> None:
        """What the trainer calls where nothing is shown."""
        if self._calls % self.EVERY == 0:
            self.read()
        self._calls += 1


def parse_slots(text: str) -> dict[str, int]:
    """``"load=2,transform=1"`` as a mapping.

    Raises:
        ConfigError: it is written in another way.
    """
    from intune.pipelines.errors import ConfigError

    slots: dict[str, int] = {}
    for part in text.split(","):
        name, equals, count = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not count.isdecimal() or name in slots:
            raise ConfigError(f"`slots` has {part!r}; write each stage once, as in load=2,transform=1")
        slots[name] = int(count)
    return slots


def _threads(wanted: int | None, cpus: int) -> int:
    from intune.pipelines.errors import ConfigError

    if wanted is None:
        return max(1, cpus // 2)
    if wanted < 1:
        raise ConfigError(f"`torch_threads` must be at least 1, but {wanted} was found")
    return wanted


def how_to_resume(summary: TrainSummary) -> str:
    """One line for a run that a signal has stopped."""
    assert summary.stopped_by is not None
    stopped = f"intune: stopped by {signal.Signals(summary.stopped_by).name} after step {summary.step:,}"
    if summary.checkpoint is None:
        return f"{stopped}; nothing was saved, since no --checkpoints folder was given"
    return f"{stopped}; saved {summary.checkpoint}: the same command with --resume goes on from there"


def summarise(summary: TrainSummary, stats: PipelineStats, resident: int, best_auc: float | None) -> str:
    """What is said at the end, a few lines.

    Args:
        summary: of training.
        stats: of the pipeline, at the end.
        resident: the most resident memory seen of this process and the pipeline's workers, bytes.
        best_auc: what a perfect model would reach on the held-out rows; None where that is not known.
    """
    from intune.pipelines.budget import format_bytes

    lines = []
    if summary.rows:
        lines += [
            f"{summary.rows:,} rows in {summary.seconds:.1f} s, step {summary.step:,}: "
            f"{summary.rows_per_s:,.0f} rows/s while training, loss {summary.loss:.4f}",
            f"waited for data {summary.wait_share:.1%} of the time; first batch after {summary.first_batch_s:.2f} s",
        ]
    else:
        lines.append(f"step {summary.step:,}: nothing was left to train")
    resident = max(resident, summary.peak_resident)
    lines.append(
        f"peak memory {format_bytes(stats.memory_peak)} in blocks, {format_bytes(stats.memory_limit)} allowed; "
        f"{format_bytes(resident)} resident"
    )
    lines.append(
        _held_out(summary.evaluations[-1].metrics, best_auc) if summary.evaluations else "no rows held out"
    )
    if summary.checkpoint is not None:
        lines.append(f"saved {summary.checkpoint}")
    return "\n".join(lines)


def _held_out(metrics: Mapping[str, float], best_auc: float | None) -> str:
    line = f"held-out AUC {metrics['auc']:.4f} on {metrics['rows']:,} rows"
    if best_auc is not None:
        line += f", {best_auc - metrics['auc']:.4f} below the best that the data allows, {best_auc:.4f}"
    return (
        f"{line}; log loss {metrics['log_loss']:.4f}, normalised entropy {metrics['normalised_entropy']:.4f}"
    )
