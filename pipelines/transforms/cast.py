"""Change the type of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array
from intune.pipelines.transforms.base import ColumnTransform, Values, freeze, require_numbers


def as_dtype(value: Any) -> np.dtype[Any]:
    """A dtype of numbers; a `ConfigError` for anything else."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise ConfigError(f"`dtype`={value!r} is no type of numbers; use one such as 'float32' or 'int64'")
    return dtype


@dataclass(frozen=True, kw_only=True)
class Cast(ColumnTransform):
    """Convert `columns` to `dtype`.

    As NumPy does: floats lose their fraction on the way to integers, and integers that are too large wrap around.
    NaN, infinity and floats beyond the integers of the type have none; they are refused.
    """

    dtype: DTypeLike

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze(self, "dtype", as_dtype(self.dtype).name)

    def transform(self, names: Sequence[str], values: Sequence[Values]) -> list[Values]:
        """The elements in the new type."""
        remedy = "only numbers can be cast; hash strings instead"
        arrays = require_numbers(self.verb, names, values, "biuf", remedy)
        return [self._cast(name, array) for name, array in zip(names, arrays, strict=True)]

    def _cast(self, name: str, array: Array) -> Array:
        dtype = np.dtype(self.dtype)
        if len(array) and array.dtype.kind == "f" and dtype.kind in "iu":
            self._require_within(name, float(array.min()), float(array.max()), dtype)
        # The column stays beside it, and who gets both may change one.
        return array.astype(dtype, copy=bool(self.suffix))

    @staticmethod
    def _require_within(name: str, low: float, high: float, dtype: np.dtype[Any]) -> None:
        """A `SchemaError` for floats whose integers the type does not have: what NumPy makes of them is undefined."""
        limits = np.iinfo(dtype)
        if not (math.isfinite(low) and math.isfinite(high)):
            found = "NaN or infinity"
        elif int(low) < limits.min:
            found = repr(low)
        elif int(high) > limits.max:
            found = repr(high)
        else:
            return
        raise SchemaError(
            f"Cast: column `{name}` holds {found}, which {dtype.name} does not have; use FillMissing or Clip first"
        )
