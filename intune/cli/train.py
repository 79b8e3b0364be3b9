"""What the commands of `intune train …` share: threads, slots, peak memory, what is said of a run that was stopped.
And how a click model's trainer is run and summed up; of the others, `recommenders.py` and their own modules do that.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intune.pipelines import Loader, PipelineStats
    from intune.workloads.training import OnStep, Trainer, TrainSummary


def run_trainer(
    trainer: Trainer,
    loader: Loader,
    *,
    title: str,
    steps: int,
    resumed_from: Path | None,
    best_auc: float | None,
    quiet: bool,
) -> None:
    """Train to the end and say how it went; leave with 128 plus its number if a signal has stopped it.

    Args:
        trainer, loader: what trains, and from what.
        title: what is shown while it does.
        steps: when it is done.
        resumed_from: the checkpoint it goes on from, if any.
        best_auc: what a perfect model would reach on the held-out rows, where that is known.
        quiet: whether to show nothing but the summary.
    """
    from intune.display import Display

    if resumed_from is not None:
        print(f"intune: going on from {resumed_from}", file=sys.stderr)
    memory_seen = PeakMemory(lambda: loader.stats(resident=True))
    display = Display(steps, title=title, mode="quiet" if quiet else "auto", read=memory_seen.read)
    trainer.on_step = _after(trainer.on_step, memory_seen.on_step if quiet else display.on_step)
    with display:
        summary = trainer.fit()
    stats = memory_seen.read()
    if summary.stopped_by is not None:
        print(how_to_resume(summary), file=sys.stderr)
        raise SystemExit(128 + summary.stopped_by)
    print(summarise(summary, stats, memory_seen.bytes, best_auc))


def _after(first: OnStep | None, then: OnStep) -> OnStep:
    """Call both, where the job has somebody of its own who looks at steps."""
    if first is None:
        return then

    def on_step(step: int, loss: float, stats: PipelineStats) -> None:
        first(step, loss, stats)
        then(step, loss, stats)

    return on_step


def set_torch_threads(wanted: int | None) -> None:
    """Let Torch use so many threads; half of the CPUs, at least one, where nothing is said.

    Raises:
        ConfigError: less than one.
    """
    import torch

    from intune.pipelines.budget import Usable
    from intune.pipelines.errors import ConfigError

    if wanted is None:
        wanted = max(1, Usable.detect().cpus // 2)
    if wanted < 1:
        raise ConfigError(f"`torch_threads` must be at least 1, but {wanted} was found")
    torch.set_num_threads(wanted)


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
