"""Where decisions go beside the control loop: a log, a display, TensorBoard, Prometheus."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from intune.decisions import DecisionLog, Entry
from intune.errors import IntuneError
from intune.report import LOG

Display = Literal["auto", "live", "lines", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of a run is shown and written; see `intune.tune`."""

    display: Display = "quiet"
    log: Path | None = None
    tensorboard: Path | None = None
    prometheus: int | str | None = None
    watch: tuple[Callable[[Entry], None], ...] = ()


@dataclass(kw_only=True)
class Sinks:
    """Open sinks.

    Attributes:
        listeners: to be told of every entry.
        closers: to be called at the end, in order.
    """

    listeners: list[Callable[[Entry], None]] = field(default_factory=list)
    closers: list[Callable[[], object]] = field(default_factory=list)

    def close(self) -> None:
        """Close all of them, whatever becomes of one."""
        while self.closers:
            with contextlib.suppress(IntuneError, OSError, ValueError):
                self.closers.pop(0)()


def open_sinks(shown: Shown, header: dict[str, Any]) -> Sinks:
    """Open what is asked for.

    Args:
        shown: what.
        header: of the log.

    Raises:
        ConfigError: a port that is taken, or a package that is missing; nothing stays open then.
    """
    sinks = Sinks(listeners=[*shown.watch])
    try:
        if shown.prometheus is not None:
            from intune.exporter import exporter

            exported = exporter(shown.prometheus)
            _add(sinks, exported, exported.close)
        if shown.tensorboard is not None:
            _add_tensorboard(sinks, shown.tensorboard)
        if shown.log is not None:
            written = DecisionLog(shown.log / LOG, header=header)
            _add(sinks, written.add, written.close)
        if shown.display != "quiet":
            from intune.tuning_display import TuningDisplay

            display = TuningDisplay(mode=shown.display)
            _add(sinks, display, display.close)
    except BaseException:
        sinks.close()
        raise
    return sinks


def _add(sinks: Sinks, listener: Callable[[Entry], None], closer: Callable[[], None]) -> None:
    sinks.listeners.append(listener)
    sinks.closers.append(closer)


def _add_tensorboard(sinks: Sinks, folder: Path) -> None:
    from intune.event_files import event_writer

    stack = contextlib.ExitStack()
    write = stack.enter_context(event_writer(folder))
    step = 0

    def listener(entry: Entry) -> None:
        nonlocal step
        write(step, {tag: value for tag, value in scalars(entry).items() if math.isfinite(value)})
        step += 1

    _add(sinks, listener, stack.close)


def scalars(entry: Entry) -> dict[str, float]:
    """What TensorBoard shows of an interval, by tag."""
    measured = entry.measured
    force = entry.decided or entry.allocation
    return {
        "intune/rows_per_s": float(measured.delivered[0]),
        "intune/waiting": float(measured.waiting[0]),
        "intune/memory_gib": float(measured.memory_used[0]) / 1024**3,
        "intune/cpus_used": float(measured.cpus_used[0]),
        **{f"intune_slots/{name}": float(force.of(name)) for name in entry.stages},
        **{f"intune_busy/{name}": float(measured.busy[0, at]) for at, name in enumerate(entry.stages)},
    }
