"""Pictures of a pipeline at work: stages, slots, queues, memory and the rate over time. As text, or drawn in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from intune.envs.measurement import Measurement
from intune.envs.render_font import draw_text
from intune.pipelines.shortened import shortened

Picture = NDArray[np.uint8]

WIDTH, HEIGHT = 640, 360
BACKGROUND, INK, PALE = (250, 250, 248), (40, 44, 52), (214, 216, 220)
WORK, STARVED, BLOCKED, QUEUE, WARN = (
    (46, 125, 150),
    (240, 200, 90),
    (200, 90, 80),
    (120, 160, 90),
    (190, 40, 40),
)
BAR = 20
SPARKS = " ▁▂▃▄▅▆▇█"


def text(now: Measurement, rates: Sequence[float]) -> str:
    """The pipeline in a few lines of text.

    Args:
        now: of one job (N = 1).
        rates: rows/s delivered, interval by interval.
    """
    count = int(now.present[0].sum())
    lines = [
        f"{shortened(np.nan_to_num(now.delivered[0]))} rows/s  trainer waits {_percent(now.waiting[0])}  "
        f"CPUs {now.cpus_used[0]:.1f}/{now.cpus[0]:.0f}  memory {_percent(_memory(now))}"
        f"{'  OUT OF MEMORY' if now.killed[0] else ''}"
    ]
    for at in range(count):
        work, starved, blocked = _shares(now, at)
        filled = round(work * BAR)
        hungry = min(round(starved * BAR), BAR - filled)
        stuck = min(round(blocked * BAR), BAR - filled - hungry)
        bar = "█" * filled + "░" * hungry + "▒" * stuck
        queue = "▮" * round(float(np.nan_to_num(now.queue_fill[0, at])) * 8)
        lines.append(f"{at + 1:2d} {now.slots[0, at]:4.0f} slots [{bar:<{BAR}}] queue [{queue:<8}]")
    lines.append(f"rate {sparkline(rates)}")
    lines.append("█ at work  ░ no input  ▒ no room for output")
    return "\n".join(lines)


def sparkline(rates: Sequence[float], width: int = 60) -> str:
    """The last `width` rates as a line of blocks; the highest is full."""
    last = list(rates)[-width:]
    most = max(last, default=0.0)
    if not most > 0:
        return SPARKS[0] * len(last)
    return "".join(SPARKS[round(rate / most * (len(SPARKS) - 1))] for rate in last)


def picture(now: Measurement, rates: Sequence[float]) -> Picture:
    """The pipeline as a picture, ``[HEIGHT, WIDTH, 3]``.

    Every stage is a box filled from below by the share of its slots that work, wait for input or for room;
    between two stages stands the queue; on the right memory; below the rate over time.

    Args:
        now, rates: see `text`.
    """
    canvas: Picture = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    draw_text(canvas, 16, 12, f"{shortened(np.nan_to_num(now.delivered[0])).upper()} ROWS/S", INK, scale=3)
    draw_text(canvas, 300, 12, f"WAITS {_percent(now.waiting[0])}", INK, scale=2)
    draw_text(canvas, 460, 12, f"CPUS {now.cpus_used[0]:.1f}/{now.cpus[0]:.0f}", INK, scale=2)
    if now.killed[0]:
        draw_text(canvas, 300, 28, "OUT OF MEMORY", WARN, scale=2)
    count = int(now.present[0].sum())
    pitch = (WIDTH - 96) // count
    for at in range(count):
        _draw_stage(canvas, now, at, 16 + at * pitch, pitch)
    _column(canvas, WIDTH - 60, 48, 36, 150, [(_memory(now), WARN if _memory(now) > 0.9 else WORK)])
    draw_text(canvas, WIDTH - 66, 204, "MEMORY", INK, scale=2)
    draw_text(canvas, WIDTH - 60, 220, _percent(_memory(now)), INK, scale=2)
    _draw_rates(canvas, rates)
    return canvas


def _draw_stage(canvas: Picture, now: Measurement, at: int, x: int, pitch: int) -> None:
    box, queue = pitch * 6 // 10, max(pitch * 2 // 10, 4)
    work, starved, blocked = _shares(now, at)
    _column(canvas, x, 48, box, 150, [(work, WORK), (starved, STARVED), (blocked, BLOCKED)])
    fill = float(np.clip(np.nan_to_num(now.queue_fill[0, at]), 0.0, 1.0))
    _column(canvas, x + box + pitch // 20, 98, queue, 100, [(fill, QUEUE)])
    draw_text(canvas, x, 204, f"STAGE {at + 1}", INK, scale=2 if pitch >= 80 else 1)
    draw_text(canvas, x, 220, f"{now.slots[0, at]:.0f} SLOTS", INK, scale=2 if pitch >= 80 else 1)


def _column(
    canvas: Picture,
    x: int,
    y: int,
    width: int,
    height: int,
    parts: Sequence[tuple[float, tuple[int, int, int]]],
) -> None:
    """A pale box filled from below by coloured shares."""
    canvas[y : y + height, x : x + width] = PALE
    bottom = y + height
    for share, colour in parts:
        top = max(bottom - round(min(share, 1.0) * height), y)
        canvas[top:bottom, x : x + width] = colour
        bottom = top


def _draw_rates(canvas: Picture, rates: Sequence[float]) -> None:
    left, top, width, height = 16, 250, WIDTH - 32, 84
    canvas[top + height, left : left + width] = INK
    draw_text(canvas, left, top + height + 8, "RATE OVER TIME", INK, scale=2)
    most = max(rates, default=0.0)
    if not most > 0:
        return
    shares = np.asarray(rates, dtype=np.float64) / most
    heights = np.rint(shares[np.arange(width) * len(shares) // width] * height).astype(int)
    rows = np.arange(height)[:, None]
    canvas[top : top + height, left : left + width][rows >= height - heights[None, :]] = WORK


def _shares(now: Measurement, at: int) -> tuple[float, float, float]:
    values = (
        now.busy[0, at] / max(float(now.slots[0, at]), 1.0),
        now.starved[0, at],
        now.blocked[0, at],
    )
    work, starved, blocked = (float(np.clip(np.nan_to_num(value), 0.0, 1.0)) for value in values)
    return work, starved, blocked


def _memory(now: Measurement) -> float:
    share = float(now.memory_used[0] / now.memory_limit[0])
    return share if np.isfinite(share) else 0.0


def _percent(share: float) -> str:
    return f"{float(np.nan_to_num(share)):.0%}"
