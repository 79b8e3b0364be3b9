"""Labels of click logs: 0 or 1, delivered as ``label`` whatever their column is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intune.pipelines.errors import DataError, SchemaError
from intune.pipelines.schema import Array, Block, Column
from intune.pipelines.transforms.base import Transform, kind_of
from intune.pipelines.transforms.compose import Compose

LABEL = "label"

MISSING_LABEL = 127
"""Stands for a missing label of an integer type: refused as a label, and every integer type has it."""

_REMEDY = "convert such labels or leave their rows out, or say in dataset.json which column holds the labels"


@dataclass(frozen=True, kw_only=True)
class Labelled(Transform):
    """Check the labels, in the stage that makes batches; what becomes of the other columns is up to `features`.

    The label is kept away from `features`, so that neither may have the name of what becomes of the other.

    Attributes:
        label: the column.
        features: of all other columns; as they are by default.
    """

    label: str
    features: Compose = field(default_factory=Compose)

    @property
    def rowwise(self) -> bool:  # type: ignore[override]
        """Whether `features` is."""
        return self.features.rowwise

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with ``label``, float32, shape ``(rows,)``, and what `features` makes of the rest.

        Raises:
            SchemaError: the labels are no numbers.
            DataError: a label is neither 0 nor 1.
        """
        rest = dict(block)
        labels = as_labels(self.label, rest.pop(self.label))
        return {LABEL: labels, **self.features(rest)}


def as_labels(name: str, column: Any) -> Array:
    """The column `name` as float32 labels; errors as of `Labelled`."""
    if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in "biuf":
        raise SchemaError(
            f"column `{name}` holds {kind_of(column)}, but labels must be numbers, 0 or 1; {_REMEDY}"
        )
    # Before the cast, which would round a number that is nearly 1. NaN differs from both.
    wrong = (column != 0) & (column != 1)
    if wrong.any():
        raise DataError(
            f"column `{name}` holds {_described(column[wrong][0])} in {int(wrong.sum()):,} of {len(column):,} rows, "
            f"but labels must be 0 or 1; {_REMEDY}"
        )
    return column.astype(np.float32, copy=False)


def _described(value: Any) -> str:
    if value != value:
        return "NaN or null"
    return f"null (or {value})" if value == MISSING_LABEL and value.dtype.kind in "iuf" else f"{value}"
