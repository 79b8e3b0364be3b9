"""What the commands of `intune train …` do alike: torch's threads, the display, what is said of a run that stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intune.pipelines import Loader, PipelineStats
    from intune.workloads.training.trainer import OnStep, TrainSummary


def set_torch_threads(wanted: int | None) -> None:
    """Let Torch use so many threads; half of the CPUs, at least one, where nothing is said.

    Raises:
        ConfigError: less than one.
    """
    import torch

    from intune.pipelines.budget import Usable
    from intune.pipelines.whole import at_least

    if wanted is None:
        wanted = max(1, Usable.detect().cpus // 2)
    torch.set_num_threads(at_least("torch_threads", wanted, 1))


@contextmanager
def displayed(loader: Loader, steps: int, *, title: str, quiet: bool) -> Iterator[tuple[OnStep, PeakMemory]]:
    """Within, training is shown.

    Args:
        loader: what the model is trained from.
        steps: when it is done.
        title: what is trained.
        quiet: whether to show nothing.

    Returns:
        What the trainer is to call, and the memory that is seen meanwhile.
    """
    from intune.display import Display

    memory = PeakMemory(lambda: loader.stats(resident=True))
    title = f"{title} on {loader.executor}"
    with Display(steps, title=title, mode="quiet" if quiet else "auto", read=memory.read) as display:
        yield memory.on_step if quiet else display.on_step, memory


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

    def said(self, train: TrainSummary) -> str:
        """A line on memory, at the end."""
        from intune.pipelines.budget import format_bytes

        stats = self.read()
        return (
            f"peak memory {format_bytes(stats.memory_peak)} in blocks, {format_bytes(stats.memory_limit)} allowed; "
            f"{format_bytes(max(self.bytes, train.peak_resident))} resident"
        )


def leave_if_stopped(summary: TrainSummary) -> None:
    """Where a signal has stopped training, say so and leave with 128 plus its number, as shells do."""
    if summary.stopped_by is not None:
        print(how_to_resume(summary), file=sys.stderr)
        raise SystemExit(128 + summary.stopped_by)


def how_to_resume(summary: TrainSummary) -> str:
    """One line for a run that a signal has stopped."""
    assert summary.stopped_by is not None
    stopped = f"intune: stopped by {signal.Signals(summary.stopped_by).name} after step {summary.step:,}"
    if summary.checkpoint is None:
        return f"{stopped}; nothing was saved, since no --checkpoints folder was given"
    return f"{stopped}; saved {summary.checkpoint}: the same command with --resume goes on from there"
