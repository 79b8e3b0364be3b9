"""Numbers as people read them at a glance."""

from __future__ import annotations

import math

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

ROUNDED_UP = 0.9995
"""Part of a unit from which on three digits show a whole one."""


def shortened(value: float, unknown: str = "–") -> str:
    """A number with three digits and k, M or G: 1234567 as 1.23M; `unknown` for NaN and infinity."""
    if not math.isfinite(value):
        return unknown
    for size, unit in UNITS:
        if abs(value) >= ROUNDED_UP * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
