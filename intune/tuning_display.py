"""What a tuner does, shown while it does it: a panel on a terminal, a line a decision elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections import deque
from typing import Literal, TextIO

import numpy as np
from rich.console import Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from intune.decisions import Entry
from intune.display import (
    Fitted,
    JobConsole,
    can_draw,
    live_on,
    memory_row,
    occupancy_bar,
    other_bars,
    others_draw,
    stage_table,
)
from intune.pipelines.budget import format_bytes
from intune.pipelines.shortened import shortened

SHOWN = 5
"""Decisions in the panel: the last minute of a job that is being tuned."""

KEPT_EVERY = 6
"""Decisions of which one has a line though it changed nothing: the log shows that tuning goes on."""

BLOCKS = "▁▂▃▄▅▆▇█"

DRAWN: list[JobConsole] = []
"""The console that a panel is drawn on now, if any. A second one would be drawn into it."""

DRAWING = threading.RLock()
"""Held while that is looked up or changed: every loader has a tuner's thread of its own, and one that is forgotten may
be closed in the middle of anything."""


def line(entry: Entry) -> str:
    """One line for a log."""
    measured = entry.measured
    slots = " ".join(
        f"{name}={count}" for name, count in (entry.decided or entry.allocation).as_dict().items()
    )
    return (
        f"intune {entry.time:7.1f} s  {shortened(measured.delivered[0], '-')} rows/s  "
        f"waiting {_percent(measured.waiting[0])}  memory {_memory(entry)}  [{slots}]  {entry.reason}"
    )


def panel(entry: Entry, past: deque[Entry]) -> RenderableType:
    """One frame for a terminal."""
    measured = entry.measured
    head = Table.grid(padding=(0, 3))
    head.add_row(
        f"[bold]{shortened(measured.delivered[0], '-')}[/] rows/s",
        f"[bold]waiting for data[/] {_percent(measured.waiting[0])}",
        f"[bold]CPUs[/] {measured.cpus_used[0]:.1f} of {measured.cpus[0]:.0f}",
        spark([float(np.nan_to_num(one.measured.delivered[0])) for one in past]),
    )
    share = float(np.nan_to_num(measured.memory_used[0] / max(measured.memory_limit[0], 1.0)))
    reasons = Table(box=None, pad_edge=False, show_header=False)
    for one in list(past)[-SHOWN:]:
        style = "" if one.decided is not None else "dim"
        reasons.add_row(Text(f"{one.time:.0f} s", style="dim"), Text(one.reason, style=style))
    return Panel(
        Group(Fitted(head), memory_row(share, _memory(entry)), Fitted(_stages(entry)), reasons),
        title="intune",
        title_align="left",
        border_style="dim",
    )


def _stages(entry: Entry) -> Table:
    measured = entry.measured
    table = stage_table("slots", "busy", "rows/s", "starved", "blocked", "queue")
    for i, name in enumerate(entry.stages):
        slots = measured.slots[0, i]
        table.add_row(
            Text(name),  # a user's own may have brackets, which are no markup
            f"of {slots:.0f}" if measured.pool[0] > 0 else f"{slots:.0f}",
            f"{measured.busy[0, i]:.1f}",
            shortened(measured.rate[0, i], "-"),
            _percent(measured.starved[0, i]),
            _percent(measured.blocked[0, i]),
            _percent(measured.queue_fill[0, i]),
            occupancy_bar(float(np.clip(np.nan_to_num(measured.busy[0, i] / max(slots, 1.0)), 0, 1))),
        )
    return table


def spark(values: list[float], width: int = 32) -> str:
    """The last values as a line of blocks, from nothing to the largest."""
    values = values[-width:]
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    return "".join(
        BLOCKS[min(len(BLOCKS) - 1, int(value / top * (len(BLOCKS) - 1) + 0.5))] for value in values
    )


class TuningDisplay:
    """Shows entries as they come; called by the control loop.

    Args:
        mode: ``"auto"`` draws on a terminal and prints lines elsewhere; a notebook draws with ``ipywidgets`` only.
            While another loader has a panel on the same terminal, or the job a bar of its own, lines go above that.
        stream: where to; standard error by default.
    """

    def __init__(
        self, *, mode: Literal["auto", "live", "lines", "quiet"] = "auto", stream: TextIO | None = None
    ) -> None:
        self._console = JobConsole(file=stream, stderr=True)
        self._own = stream is None
        if mode == "auto":
            mode = "live" if can_draw(self._console) else "lines"
        if mode == "live" and self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
            mode = "lines"  # where rich draws nothing but a warning
        self._mode = mode
        self._past: deque[Entry] = deque(maxlen=64)
        self._shown = 0
        self._live: Live | None = None

    def __call__(self, entry: Entry) -> None:
        """Show one entry. A terminal that is gone does not stop tuning."""
        self._past.append(entry)
        self._shown += 1
        try:
            self._show(entry)
        except (OSError, ValueError):  # closed terminal or stream
            self._mode = "quiet"
            self.close()

    def _show(self, entry: Entry) -> None:
        if self._mode == "live" and self._live is None:
            self._begin()
        elif self._live is not None and not self._live.is_started:  # the job draws a bar
            self.close()
            self._mode = "lines"
        if self._live is not None:
            self._live.update(panel(entry, self._past), refresh=True)
        # What is kept is only worth a line now and then.
        elif self._mode == "lines" and (entry.decided is not None or self._shown % KEPT_EVERY == 1):
            self._print(line(entry))

    def _print(self, text: str) -> None:
        """A line, above what the job itself draws."""
        if self._own and isinstance(sys.stderr, FileProxy):
            sys.stderr.write(f"{text}\n")
            return
        bars = other_bars()
        with contextlib.nullcontext() if bars is None else bars.external_write_mode(self._console.file):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _begin(self) -> None:
        """Draw a panel from now on, or where another one or a bar of the job has the terminal, lines above that."""
        if others_draw():
            self._mode = "lines"
            return
        with DRAWING:
            if DRAWN and DRAWN[0].file is self._console.file:
                self._console, self._mode = DRAWN[0], "lines"
                return
            DRAWN.append(self._console)
            self._live = live_on(self._console)
            self._live.start()

    def close(self) -> None:
        """Leave the last frame; twice does no harm."""
        live, self._live = self._live, None
        if live is not None:
            with DRAWING, contextlib.suppress(OSError, ValueError):  # a closed terminal
                DRAWN.remove(self._console)
                live.stop()


def _memory(entry: Entry) -> str:
    measured = entry.measured
    used = format_bytes(float(np.nan_to_num(measured.memory_used[0])))
    return f"{used} of {format_bytes(float(measured.memory_limit[0]))}"


def _percent(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.0%}"
