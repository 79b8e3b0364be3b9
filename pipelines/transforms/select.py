"""Keep some columns and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intune.pipelines.schema import Block, Column
from intune.pipelines.transforms.base import Transform, as_patterns, choose, freeze


@dataclass(frozen=True, kw_only=True)
class Select(Transform):
    """Keep `columns` (names or patterns), in the order in which they are given."""

    columns: str | Sequence[str]

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with these columns only."""
        return {name: block[name] for name in choose(block, self.columns, "Select")}
