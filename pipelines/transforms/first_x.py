"""The first elements of every list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.pipelines.schema import Block, Column, Ragged, elements, take_column
from intune.pipelines.transforms.base import Transform, as_patterns, choose, freeze
from intune.pipelines.transforms.lists import require_lists
from intune.pipelines.whole import at_least


@dataclass(frozen=True, kw_only=True)
class FirstX(Transform):
    """Keep the first `x` elements of every list; shorter lists stay as they are.

    Attributes:
        columns: names or patterns; list columns.
        x: 1 or more.
    """

    columns: str | Sequence[str]
    x: int

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))
        freeze(self, "x", at_least("x", self.x, 1))

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with shortened lists."""
        made: Block = dict(block)
        for name in choose(block, self.columns, "FirstX"):
            made[name] = self._shorten(require_lists("FirstX", name, block[name]))
        return made

    def _shorten(self, column: Ragged) -> Ragged:
        lengths: Any = column.lengths
        if not len(lengths) or lengths.max() <= self.x:
            return column
        places, offsets = elements(column.offsets[:-1], np.minimum(lengths, self.x))
        return Ragged(take_column(column.values, places), offsets)
