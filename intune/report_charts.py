"""Charts over the time of a run as SVG text, coloured by the page's variables. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TypeVar

from intune.pipelines.shortened import shortened
from intune.simulation.svg import picture, short, ticks

WIDTH, HEIGHT = 900, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 34
STRIP = 34

T = TypeVar("T")

MOST_POINTS = 600
"""Of a line: a phone shows fewer; a run of days stays a page of some 100 kB."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values over time.

    Attributes:
        name: in its tooltip.
        colour: of the line, as CSS.
        times, values: in order; a NaN is a gap.
        steps: whether a value holds from its time on until the next.
        dashed: drawn so.
        lift: by which it is drawn higher, in the picture's units.
    """

    name: str
    colour: str
    times: Sequence[float]
    values: Sequence[float]
    steps: bool = False
    dashed: bool = False
    lift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Span:
    """From `start` to `end` it was `name`."""

    start: float
    end: float
    name: str
    colour: str


def time_chart(series: Sequence[Series], *, up: str, until: float, marks: Sequence[float] = ()) -> str:
    """Lines over the seconds of a run.

    Args:
        series: to draw.
        up: name of the vertical axis.
        until: end of the horizontal axis, seconds.
        marks: times of a thin vertical line each.
    """
    most = max((v for one in series for v in one.values if math.isfinite(v)), default=1.0) * 1.08 or 1.0
    plane = _Plane(until=max(until, 1e-9), top=most)
    parts = [_frame(plane, up)]
    parts += [f'<path class="mark" d="M{plane.x(t)} {TOP}V{HEIGHT - BOTTOM}"/>' for t in thin(list(marks))]
    for one in series:
        dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
        lift = f' transform="translate(0 -{short(one.lift)})"' if one.lift else ""
        parts.append(
            f'<path class="line" style="stroke:{one.colour}"{dashes}{lift} d="{_path(plane, one)}">'
            f"<title>{escape(one.name)}</title></path>"
        )
    return picture(WIDTH, HEIGHT, f"{up} over time", parts)


def strip(spans: Sequence[Span], *, until: float, label: str) -> str:
    """What it was, when: a coloured band over the seconds of a run."""
    plane = _Plane(until=max(until, 1e-9), top=1.0)
    parts = [
        f'<rect style="fill:{span.colour}" x="{plane.x(span.start)}" y="2" height="{STRIP - 4}" '
        f'width="{short(max((span.end - span.start) / plane.until * (WIDTH - LEFT - RIGHT), 0.5))}">'
        f"<title>{escape(span.name)}, {span.start:.0f} to {span.end:.0f} s</title></rect>"
        for span in coarser(joined(spans))
    ]
    return picture(WIDTH, STRIP, label, parts)


def joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of one name as one."""
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is not None and last.name == span.name and span.start <= last.end + 1e-6:
            found[-1] = Span(start=last.start, end=span.end, name=span.name, colour=span.colour)
        else:
            found.append(span)
    return found


def coarser(spans: Sequence[Span], most: int = MOST_POINTS) -> list[Span]:
    """At most so many: of neighbours, the one that lasted longest."""
    group = math.ceil(len(spans) / most) or 1
    found = []
    for at in range(0, len(spans), group):
        some = spans[at : at + group]
        longest = max(some, key=lambda span: span.end - span.start)
        found.append(replace(longest, start=some[0].start, end=some[-1].end))
    return joined(found)


def thinned(
    times: Sequence[float], values: Sequence[float], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """At most so many points: means over neighbours, a gap where all of them are gaps."""
    group = math.ceil(len(times) / most) if times else 1
    points = []
    for at in range(0, len(times), group):
        known = [value for value in values[at : at + group] if math.isfinite(value)]
        points.append(
            (times[min(at + group, len(times)) - 1], sum(known) / len(known) if known else math.nan)
        )
    return points


@dataclass(frozen=True, kw_only=True)
class _Plane:
    until: float
    top: float

    def x(self, seconds: float) -> str:
        return short(LEFT + (WIDTH - LEFT - RIGHT) * min(max(seconds / self.until, 0.0), 1.0))

    def y(self, value: float) -> str:
        return short(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value / self.top, 0.0), 1.0))


def _path(plane: _Plane, one: Series) -> str:
    if one.steps:  # means would be slots that were never given
        points = list(zip(one.times, one.values, strict=True))
        points = thin(points, MOST_POINTS)
    else:
        points = thinned(one.times, one.values)
    parts: list[str] = []
    pen = False
    for seconds, value in points:
        x, y = plane.x(seconds), plane.y(value)
        if not math.isfinite(value):
            parts += [f"H{x}"] if pen and one.steps else []  # the last value held until then
            pen = False
            continue
        parts.append(f"M{x} {y}" if not pen else f"H{x}V{y}" if one.steps else f"L{x} {y}")
        pen = True
    return "".join(parts)


def _frame(plane: _Plane, up: str) -> str:
    parts = []
    for value in ticks(plane.top, about=4):
        y = plane.y(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{shortened(value)}</text>'
        )
    unit, per = time_unit(plane.until)
    foot = HEIGHT - BOTTOM + 15
    parts += [
        f'<text class="tick" x="{plane.x(value * per)}" y="{foot}" text-anchor="middle">{value:g}</text>'
        for value in ticks(plane.until / per, about=8)
    ]
    parts.append(
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{unit}</text>'
        f'<text class="tick" x="{LEFT}" y="{HEIGHT - 3}">{escape(up)}</text>'
    )
    return "".join(parts)


def time_unit(until: float) -> tuple[str, float]:
    """The unit in which so many seconds read well, and the seconds in it."""
    for unit, per in (("hours", 3600.0), ("minutes", 60.0)):
        if until >= 3 * per:
            return unit, per
    return "seconds", 1.0


def thin(values: list[T], most: int = 200) -> list[T]:
    """At most so many of them, from the first on."""
    return values[:: math.ceil(len(values) / most) or 1]
