"""Says on standard error how far a simulation has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from intune.display import can_draw

LINE_S = 10.0
"""Seconds between two plain lines."""


class JobProgress:
    """A context manager that is called with scenario, agent and how many jobs more were run.

    Args:
        total: jobs to run, over all agents and scenarios.
        stream: where to; standard error by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self, total: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._done = 0
        self._clock = clock
        self._shown = clock()
        self._console = Console(file=sys.stderr if stream is None else stream)
        self._drawn = can_draw(self._console)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("simulating", total=total)

    def __call__(self, scenario: str, agent: str, jobs: int) -> None:
        """`jobs` more are done."""
        self._done += jobs
        if self._drawn:
            self._bar.update(self._task, advance=jobs, description=f"{scenario}: {agent}")
        elif self._clock() - self._shown >= LINE_S:
            self._shown = self._clock()
            share = self._done / max(self._total, 1)
            print(f"{share:.0%} done, {scenario}: {agent}", file=self._console.file, flush=True)

    def __enter__(self) -> JobProgress:
        if self._drawn:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._bar.stop()
