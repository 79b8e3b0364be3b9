"""Keep numbers within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array
from intune.pipelines.transforms.base import InPlaceTransform, Values, freeze, number, require_numbers
from intune.pipelines.transforms.layout import Work


@dataclass(frozen=True, kw_only=True)
class Clip(InPlaceTransform):
    """Raise what is below `min` to it and lower what is above `max`; NaN stays NaN, and the type stays.

    Attributes:
        min: None for no lower bound.
        max: None for no upper bound.
    """

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound is not None:
                freeze(self, name, number(name, bound))
        if self.min is None and self.max is None:
            raise ConfigError("`min` and `max` are both None, so nothing would be clipped; give one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"`min`={self.min!r} is above `max`={self.max!r}; swap them")

    def work(self, names: Sequence[str], values: Sequence[Values]) -> Work:
        """Clip in place."""
        arrays = require_numbers("Clip", names, values, "iuf", "only numbers can be clipped")
        bounds = [self._bounds(name, array.dtype) for name, array in zip(names, arrays, strict=True)]

        def run(piece: Array, which: Sequence[int], elements: slice) -> None:
            low, high = bounds[which[0]]  # a piece is of one type
            np.clip(piece, low, high, out=piece)

        return Work(arrays=arrays, dtypes=[array.dtype for array in arrays], run=run)

    def _bounds(self, name: str, dtype: np.dtype) -> tuple[float | None, float | None]:
        """The bounds as numbers that the type has; the same for all columns of one type."""
        if dtype.kind == "f":
            return self.min, self.max
        limits = np.iinfo(dtype)
        low = None if self.min is None else self._whole(name, "min", self.min, limits)
        high = None if self.max is None else self._whole(name, "max", self.max, limits)
        return low, high

    @staticmethod
    def _whole(name: str, argument: str, bound: float, limits: np.iinfo) -> int:
        if math.isinf(bound):
            return int(limits.max if bound > 0 else limits.min)
        if bound != int(bound):
            raise SchemaError(
                f"Clip: column `{name}` holds {limits.dtype}, which does not have `{argument}`={bound!r}; "
                f"give a whole number, or Cast the column first"
            )
        return min(max(int(bound), int(limits.min)), int(limits.max))
