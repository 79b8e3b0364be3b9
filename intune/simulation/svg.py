"""Charts as SVG text, coloured by the page's own variables so that they follow its light or dark mode. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isnan, log10

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36


@dataclass(frozen=True, kw_only=True)
class Line:
    """One agent's line.

    Attributes:
        name: in its tooltip.
        colour: number of the page's variable ``--c…``.
        values: one for each decision, from the first; NaN is left out.
        low, high: of the band around it; empty for none.
        dashed: drawn so.
    """

    name: str
    colour: int
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def line_chart(lines: Sequence[Line], *, across: str, up: str, most: float | None = None) -> str:
    """Lines over decisions 1, 2, 3 …

    Args:
        lines: to draw.
        across, up: names of the axes.
        most: upper end of the vertical axis; None to fit.
    """
    steps = max(len(line.values) for line in lines)
    highest = max((value for line in lines for value in line.values if not isnan(value)), default=0.0)
    top = most if most is not None else max(highest, 0.0) * 1.05 or 1.0
    scale = _Scale(steps=steps, top=top)
    parts = [_frame(scale, across, up)]
    for line in lines:
        if len(line.low):
            edge = [*scale.points(line.high), *reversed(scale.points(line.low))]
            parts.append(
                f'<polygon class="band" style="fill:var(--c{line.colour})" points="{" ".join(edge)}"/>'
            )
    for line in lines:
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(
            f'<polyline class="line" style="stroke:var(--c{line.colour})"{dashes} '
            f'points="{" ".join(scale.points(line.values))}"><title>{escape(line.name)}</title></polyline>'
        )
    return picture(WIDTH, HEIGHT, f"{up} over {across}", parts)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One agent's bar: its share and where that lies with confidence; NaN for no bar."""

    name: str
    colour: int
    value: float
    low: float
    high: float


def bar_chart(bars: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars from 0 to 1, with whiskers."""
    row = 20
    left = 14 + 7 * max(len(bar.name) for bar in bars)
    width = WIDTH - left - 60
    height = row * len(bars) + 8
    parts = []
    for number, bar in enumerate(bars):
        y = 4 + row * number
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>'
        )
        if isnan(bar.value):
            continue
        value = max(bar.value, 0.0)
        parts.append(
            f'<rect style="fill:var(--c{bar.colour})" x="{left}" y="{y + 3}" height="13" rx="2" '
            f'width="{short(width * min(value, 1.0))}"><title>{escape(bar.name)}: {bar.value:.3f}</title></rect>'
            f'<path class="whisker" d="M{short(left + width * max(bar.low, 0.0))} {y + 9.5}H'
            f'{short(left + width * min(bar.high, 1.05))}"/>'
            f'<text class="tick" x="{short(left + width * min(max(bar.high, value), 1.05) + 6)}" y="{y + 13}">'
            f"{bar.value:.3f}</text>"
        )
    return picture(WIDTH, height, label, parts)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    steps: int
    top: float

    def x(self, step: float) -> float:
        """Of a decision, from 1."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(self.steps - 1, 1)

    def y(self, value: float) -> float:
        part = min(max(value / self.top, 0.0), 1.02)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part

    def points(self, values: Sequence[float]) -> list[str]:
        return [
            f"{short(self.x(i + 1))},{short(self.y(value))}"
            for i, value in enumerate(values)
            if not isnan(value)
        ]


def ticks(top: float, *, about: int = 5) -> list[float]:
    """Round numbers from 0 to `top`: steps of 1, 2 or 5 times a power of ten."""
    raw = top / about
    power = 10.0 ** floor(log10(raw))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= raw * 0.999)
    return [step * i for i in range(floor(top / step + 1e-9) + 1)]


def _frame(scale: _Scale, across: str, up: str) -> str:
    parts = []
    for value in ticks(scale.top):
        y = short(scale.y(value))
        parts.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{value:g}</text>'
        )
    steps = [1, *(int(value) for value in ticks(scale.steps) if ceil(value) == value and value > 1)]
    foot = HEIGHT - BOTTOM + 16
    parts += [
        f'<text class="tick" x="{short(scale.x(step))}" y="{foot}" text-anchor="middle">{step}</text>'
        for step in steps
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(12 {HEIGHT / 2 - 10}) rotate(-90)" text-anchor="middle">'
    )
    parts.append(f"{escape(up)}</text>")
    return "".join(parts)


def picture(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The whole chart."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def short(value: float) -> str:
    """A place in it."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
