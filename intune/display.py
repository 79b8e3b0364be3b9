"""A live view of a running job: stages, slots, queues, memory, loss. Plain lines where there is no terminal.

What is shown is computed by `view` from two readings of a loader's stats; drawing it is apart.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Literal, TextIO

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from intune.pipelines.budget import format_bytes
from intune.pipelines.metrics import PipelineStats, StageStats
from intune.pipelines.shortened import shortened

REDRAW_S = 0.5
"""Seconds between two frames: often enough to look alive, seldom enough to cost nothing."""

WINDOW_S = 5.0
"""Seconds over which rates are shown: of a trainer that is the slower one, a shorter look sees no task at all."""

BROAD = 1000
"""Characters across that no table needs."""

LINE_S = 5.0
"""Seconds between two plain lines: a log of an hour stays readable."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a frame shows.

    Attributes:
        done, total: steps done and to do.
        loss: as the trainer reported it last.
        now: what was measured since the frame before.
        whole: what was measured since the beginning.
    """

    done: int
    total: int
    loss: float
    now: PipelineStats
    whole: PipelineStats

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the present pace; None while nothing is known."""
        if not self.now.batches or self.now.elapsed_s <= 0:
            return None
        return max(0, self.total - self.done) * self.now.elapsed_s / self.now.batches


def line(view: View) -> str:
    """One line for a log."""
    now, whole = view.now, view.whole
    pool = now.allocation.pool if now.allocation.is_shared else 0
    stages = f"pool of {pool}:" if pool else "slots:"
    for stage in now.stages:
        stages += f" {stage.name} " + ("" if pool else f"{stage.slots} at ") + f"{_share(stage, now):.0%}"
    return (
        f"step {view.done:,}/{view.total:,}  loss {view.loss:.4f}  {shortened(now.rows_per_s)} rows/s  "
        f"waiting {now.wait_share:.0%}  memory {format_bytes(whole.memory_held)} of "
        f"{format_bytes(whole.memory_limit)}  [{stages}]"
    )


def panel(view: View, title: str) -> RenderableType:
    """One frame for a terminal."""
    now, whole = view.now, view.whole
    head = Table.grid(padding=(0, 3))
    left = "" if view.left_s is None else f", {_duration(view.left_s)} to go"
    head.add_row(
        f"[bold]step[/] {view.done:,} of {view.total:,}{left}",
        f"[bold]loss[/] {view.loss:.4f}",
        f"[bold]{shortened(now.rows_per_s)}[/] rows/s",
        f"[bold]waiting for data[/] {now.wait_share:.0%}",
    )
    share = whole.memory_held / whole.memory_limit if whole.memory_limit else 0.0
    memory = memory_row(
        share,
        f"{format_bytes(whole.memory_held)} in blocks of {format_bytes(whole.memory_limit)} allowed, "
        f"peak {format_bytes(whole.memory_peak)}"
        + (f", {format_bytes(whole.memory_resident)} resident" if whole.memory_resident else ""),
    )
    parts: list[RenderableType] = [
        Bar(1.0, 0, view.done / view.total if view.total else 0.0, color="green"),
        head,
        memory,
        Fitted(_stages(now)),
    ]
    if notes := _notes(whole):
        parts.append(Text(notes, style="yellow"))
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def memory_row(share: float, text: str) -> RenderableType:
    """How full memory is: a bar, red where hardly any is left, and words."""
    row = Table.grid(padding=(0, 1))
    colour = "red" if share > 0.95 else "cyan"
    row.add_row(Text("memory"), Bar(1.0, 0, min(1.0, share), width=24, color=colour), text)
    return row


def stage_table(*columns: str) -> Table:
    """A table of stages: their names, these figures, and a bar (`occupancy_bar`)."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("occupancy", width=18)
    return table


def occupancy_bar(share: float) -> Bar:
    """Of a stage's slots, those at work."""
    return Bar(1.0, 0, share, width=18, color="magenta")


class JobConsole(Console):
    """A console whose reader may leave, as ``| head`` does: that is a `BrokenPipeError`, for the job to deal with.
    Rich would end the program, and send to nowhere what the job prints to standard output from then on."""

    @property  # type: ignore[misc]  # nobody sets it
    def file(self) -> IO[str]:
        """Where it writes: the stream itself, also while a panel stands before it."""
        found = super().file
        return found.beneath if isinstance(found, _Above) else found

    def on_broken_pipe(self) -> None:
        """What rich calls then."""
        raise BrokenPipeError("nobody reads what is shown any more")


class Fitted:
    """A table without its last columns where a terminal is too narrow for all: cut ones would say nothing.

    Args:
        table: its columns in order of importance.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich draws."""
        unbounded = options.update_width(BROAD)
        while Measurement.get(console, unbounded, self._table).maximum > options.max_width:
            if len(self._table.columns) == 1:
                break
            self._table.columns.pop()
        yield self._table


def can_draw(console: Console) -> bool:
    """Whether a panel or bar can be redrawn there; on a terminal that cannot go back, one shows only at the end.
    ``FORCE_COLOR`` asks for colours in a file, and makes no terminal of it, though Rich says so. One whose character
    set has no bars (Latin-1, say) would show their codes."""
    able = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return able and _is_terminal(console.file)


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # a closed one
        return False


def live_on(console: Console) -> Live:
    """A panel that is redrawn. What the job prints goes above it if it goes to a terminal, and else where it would go
    without the panel: to a file, a pipe."""
    return _Shared(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


class _Shared(Live):
    """A panel on a terminal that the job prints on: what it writes, its log handlers too, goes above the panel."""

    def start(self, refresh: bool = False) -> None:
        """Begin to draw, and stand before the streams."""
        super().start(refresh)
        for name, above in ABOVE.items():
            stream = getattr(sys, name)
            stream = above.beneath if stream is above else stream
            if stream is not None and _is_terminal(stream):
                above.begin(self, stream)
                setattr(sys, name, above)
                _hand_over(stream, above)

    def stop(self) -> None:
        """Leave the last frame, and the streams as they were."""
        mine = [(name, above) for name, above in ABOVE.items() if above.live is self]
        for _, above in mine:
            with contextlib.suppress(OSError, ValueError):
                above.flush()
        try:
            super().stop()
        finally:
            for name, above in mine:
                above.live = None
                if getattr(sys, name) is above:
                    setattr(sys, name, above.beneath)
                _hand_over(above, above.beneath)


class _Above:
    """A stream of the job while a panel is drawn, which moves on below what is written. Who goes back in a line, as
    a bar of tqdm or rich does, draws too: there the panel ends."""

    live: Live | None = None
    beneath: Any = None

    def begin(self, live: Live, stream: TextIO) -> None:
        """Stand before a stream."""
        self._lines = FileProxy(live.console, stream)
        self.beneath, self.live = stream, live

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)  # encoding, buffer, isatty, …

    def write(self, text: str) -> int:
        """Whole lines go above the panel, if there is one."""
        live = self.live
        if live is not None and "\r" in text:
            live.stop()
        if live is None or not live.is_started:
            self.beneath.write(text)
        else:
            self._lines.write(text)
        return len(text)

    def flush(self) -> None:
        """Send on what is left of a line."""
        (self.beneath if self.live is None else self._lines).flush()


ABOVE = {"stdout": _Above(), "stderr": _Above()}
"""For good: `print` goes on with the stream that it began with, and without a reference of its own."""


def _hand_over(stream: Any, other: Any) -> None:
    """Let log handlers write to another stream: each has kept the one of when it was made."""
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.stream = other  # without its lock: this may be in the middle of what somebody writes


def other_bars() -> Any:
    """The class of tqdm's bars if one is drawn now, on the terminal or elsewhere; else None."""
    kind = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return kind if getattr(kind, "_instances", ()) else None


def others_draw() -> bool:
    """Whether the job draws a bar or panel of its own now: of tqdm, or of rich, which stands before the streams."""
    return other_bars() is not None or isinstance(sys.stderr, FileProxy) or isinstance(sys.stdout, FileProxy)


def _stages(now: PipelineStats) -> Table:
    table = stage_table("slots", "busy", "rows/s", "computing", "waiting", "queue")
    seconds = now.elapsed_s or 1.0
    for stage in now.stages:
        table.add_row(
            stage.name,
            _slots(stage, now),
            f"{stage.busy_s / seconds:.1f}",
            shortened(stage.rows / seconds),
            f"{stage.cpu_s / seconds:.1f}",
            f"{stage.waiting_s / seconds:.1f}",
            str(stage.queue),
            occupancy_bar(_share(stage, now)),
        )
    return table


def _share(stage: StageStats, now: PipelineStats) -> float:
    """Of its slots' time; of a shared pool's time, where that is what it draws on."""
    if now.allocation.is_shared:
        return min(1.0, stage.busy_s / (now.elapsed_s * now.allocation.pool)) if now.elapsed_s > 0 else 0.0
    return stage.occupancy


def _slots(stage: StageStats, now: PipelineStats) -> str:
    return f"of {stage.slots}" if now.allocation.is_shared else str(stage.slots)


def _notes(whole: PipelineStats) -> str:
    notes = []
    if whole.workers_lost:
        notes.append(f"{whole.workers_lost} worker(s) died, {whole.redone} block(s) made again")
    if whole.skipped:
        notes.append(f"{whole.skipped} skipped")
    return "; ".join(notes)


class Display:
    """Shows a running job; its `on_step` is what a trainer calls.

    Args:
        total: steps to do.
        title: name of the job.
        mode: ``"auto"`` draws on a terminal and logs lines elsewhere; ``"quiet"`` shows nothing.
        read: reads the stats to show, instead of those that the trainer passes (to add resident memory, which
            takes longer than a step may).
        stream: where to; standard error by default, so that results can be piped.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        *,
        title: str = "training",
        mode: Literal["auto", "live", "lines", "quiet"] = "auto",
        read: Callable[[], PipelineStats] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._title = title
        self._clock = clock
        self._read = read
        self._console = JobConsole(file=stream, stderr=True)
        if mode == "auto":
            mode = "live" if can_draw(self._console) else "lines"
        self._mode = mode
        self._every = REDRAW_S if mode == "live" else LINE_S
        self._live: Live | None = None
        self._due = clock() + (0.0 if mode == "live" else self._every / 5)
        self._past: deque[tuple[float, PipelineStats]] = deque()

    def __enter__(self) -> Display:
        if self._mode == "live":
            self._live = live_on(self._console)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def on_step(self, step: int, loss: float, stats: PipelineStats) -> None:
        """Show the state after a step, if it is time to. A terminal that is gone, or a full disk, does not end the
        training: nothing is shown any more."""
        now = self._clock()
        if self._mode == "quiet" or (now < self._due and step < self._total):
            return
        self._due = now + self._every
        if self._read is not None:
            stats = self._read()
        while len(self._past) > 1 and self._past[1][0] <= now - WINDOW_S:
            self._past.popleft()
        before = self._past[0][1] if self._past else None
        # The last frame stands for the whole job; the ones before for the last seconds.
        whole = before is None or step >= self._total or stats.batches <= before.batches
        interval = stats if whole or before is None else stats.since(before)
        self._past.append((now, stats))
        view = View(done=step, total=self._total, loss=loss, now=interval, whole=stats)
        try:
            if self._live is not None:
                self._live.update(panel(view, self._title), refresh=True)
            else:
                self._console.print(line(view), markup=False, highlight=False, soft_wrap=True)
        except (OSError, ValueError):  # the latter of a closed stream
            self._mode = "quiet"
            self._leave()

    def _leave(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
