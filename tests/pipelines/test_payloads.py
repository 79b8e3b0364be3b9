"""Batches that lie together, and parts of them."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.payloads import Piece, only


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Some of them left out, some with empty batches."""
    made = []
    for sizes in draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=5)):
        edges = [0, *itertools.accumulate(sizes)]
        block = {"x": np.arange(edges[-1])}
        made.append(Piece(None if draw(st.booleans()) and draw(st.booleans()) else block, edges))
    return made


def batches(pieces: list[Piece]) -> list[list[int] | None]:
    return [None if batch is None else batch["x"].tolist() for piece in pieces for batch in piece.batches()]


@given(made=pieces(), first=st.integers(-2, 20), count=st.integers(0, 20))
def test_a_part_has_as_many_batches_and_only_those_that_are_wanted(
    made: list[Piece], first: int, count: int
) -> None:
    wanted = range(first, first + count)
    expected = [batch if index in wanted else None for index, batch in enumerate(batches(made))]
    part = only(made, first, first + count)
    assert batches(part) == expected
    assert all(len(piece) for piece in part)
