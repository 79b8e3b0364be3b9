"""Says on stderr how far a long command has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

PATIENCE = 2.0
"""Seconds: what is over sooner needs no progress, and plain lines come no more often."""
LINE_SHARE = 0.05
"""Of the time gone by, what passes at least between two plain lines: an hour makes 150 lines, not 1,800."""


class Progress:
    """Reports rows done and the share of the work that is done; a context manager and a function.

    Call it with the number of rows so far and the share done, 0 to 1.
    """

    def __init__(
        self, title: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._started = self._shown = clock()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, rows: int, share: float) -> None:
        """Report; cheap enough to be called every few milliseconds."""
        now = self._clock()
        if self._bar is not None:
            rate = rows / max(now - self._started, 1e-9)
            self._bar.update(self._task, completed=share, rows=f"{rows:,} rows", rate=f"{rate:,.0f} rows/s")
        elif now - self._shown >= max(PATIENCE, LINE_SHARE * (now - self._started)):
            self._shown = now
            if not self._start_bar():
                rate = rows / (now - self._started)
                line = f"{self._title}: {share:.0%}, {rows:,} rows, {rate:,.0f} rows/s"
                print(line, file=self._stream, flush=True)

    def _start_bar(self) -> bool:
        """Whether there is a terminal to draw it on."""
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from intune.display import can_draw

        console = Console(file=self._stream)
        if not can_draw(console):
            return False
        columns = [TextColumn(f"{{task.{text}}}") for text in ("description", "fields[rows]", "fields[rate]")]
        self._bar = Bar(
            columns[0],
            BarColumn(),
            TaskProgressColumn(),
            *columns[1:],
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=1.0, rows="", rate="")
        return True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
