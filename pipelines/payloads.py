"""What tasks hand on: before `batch` a block of rows (laid out as a `shuffle.Split` where a shuffle follows), after it
a list of `Piece`: batches that lie together stay together until someone needs them one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from intune.pipelines.plan import Ints
from intune.pipelines.schema import Block, block_rows, slice_block


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for rows that could not be read."""

    rows: int


@dataclass(slots=True)
class Partial:
    """A block of which rows are missing: its rows stand at `places` of the sequence, which rise."""

    block: Block
    places: Ints

    def values(self) -> list[Any]:
        """Its columns, for those who count memory."""
        return [*self.block.values(), self.places]


@dataclass(slots=True)
class Piece:
    """Batches that lie together: batch ``k`` is rows ``[edges[k], edges[k + 1])`` of `block`; None: left out."""

    block: Block | None
    edges: list[int]

    def __len__(self) -> int:
        return len(self.edges) - 1

    def values(self) -> list[Any]:
        """What it keeps in memory: the block itself, which may keep more than its columns."""
        return [] if self.block is None else [self.block]

    def batches(self) -> Iterator[Block | None]:
        """Its batches, as views."""
        if self.block is None:
            yield from itertools.repeat(None, len(self))
        elif len(self) == 1:
            yield self.block
        else:
            for low, high in itertools.pairwise(self.edges):
                yield slice_block(self.block, low, high)

    def singles(self) -> Iterator[Piece]:
        """Its batches, as pieces of their own."""
        for batch in self.batches():
            yield Piece(batch, [0, block_rows(batch) if batch is not None else 0])


def only(pieces: Sequence[Piece], first: int, last: int) -> list[Piece]:
    """As many batches, but those outside ``[first, last)`` left out: for who takes no others."""
    kept, at = [], 0
    for piece in pieces:
        low, high = (min(max(place - at, 0), len(piece)) for place in (first, last))
        at += len(piece)
        edges = piece.edges
        if piece.block is None or high - low == len(piece):
            kept.append(piece)
            continue
        parts = [Piece(None, edges[: low + 1])]
        if high > low:
            block = slice_block(piece.block, edges[low], edges[high])
            parts.append(Piece(block, [edge - edges[low] for edge in edges[low : high + 1]]))
        kept += [part for part in [*parts, Piece(None, edges[max(low, high) :])] if len(part)]
    return kept
