"""The logarithm that tames counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Array
from intune.pipelines.transforms.base import InPlaceTransform, Values, freeze, require_numbers
from intune.pipelines.transforms.cast import as_dtype
from intune.pipelines.transforms.layout import Work


@dataclass(frozen=True, kw_only=True)
class Log1p(InPlaceTransform):
    """Replace x by log(1 + x); floats keep their type and integers become float32.

    Attributes:
        clip_negative: whether what is below 0 counts as 0. If not, −1 gives minus infinity and less gives NaN.
        dtype: type of floats to convert to before; None to keep them.
        fill_missing: whether NaN counts as 0 as well, at no cost, instead of staying NaN.
    """

    clip_negative: bool = True
    fill_missing: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill_missing and not self.clip_negative:
            raise ConfigError(
                "`fill_missing`=True needs `clip_negative`=True; use FillMissing before to keep negative numbers"
            )

        if self.dtype is not None:
            dtype = as_dtype(self.dtype)
            if dtype.kind != "f":
                raise ConfigError(f"`dtype`={self.dtype!r} must be a type of floats, such as 'float32'")
            freeze(self, "dtype", dtype.name)

    def work(self, names: Sequence[str], values: Sequence[Values]) -> Work:
        """Take logarithms in place."""
        arrays = require_numbers("Log1p", names, values, "biuf", "only numbers have logarithms")
        return Work(arrays=arrays, dtypes=[self._type(array.dtype) for array in arrays], run=self._log)

    def _type(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        if self.dtype is not None:
            return np.dtype(self.dtype)
        return dtype if dtype.kind == "f" else np.dtype(np.float32)

    def _log(self, piece: Array, which: Sequence[int], elements: slice) -> None:
        if self.clip_negative:
            # fmax ignores NaN, maximum keeps it.
            (np.fmax if self.fill_missing else np.maximum)(piece, 0, out=piece)
            np.log1p(piece, out=piece)
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log1p(piece, out=piece)
