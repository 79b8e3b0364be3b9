"""Leave some columns out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intune.pipelines.schema import Block, Column
from intune.pipelines.transforms.base import Transform, as_patterns, choose, freeze


@dataclass(frozen=True, kw_only=True)
class Drop(Transform):
    """Leave out `columns` (names or patterns)."""

    columns: str | Sequence[str]

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block without these columns."""
        gone = set(choose(block, self.columns, "Drop"))
        return {name: column for name, column in block.items() if name not in gone}
