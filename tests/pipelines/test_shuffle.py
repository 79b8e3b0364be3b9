from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from intune.pipelines import shuffle
from intune.pipelines.schema import Ragged
from intune.pipelines.shuffle import Split, gather, lay_out, layout, places

CELLS = 6


def split(ids: np.ndarray[Any, Any], cells: np.ndarray[Any, Any], count: int) -> Split:
    """A block of rows with these ids, in all kinds of columns, laid out by cell."""
    lengths = ids % 3
    edges = np.concatenate([[0], np.cumsum(lengths)])
    block = {
        "id": ids,
        "half": ids / 2,
        "pair": np.stack([ids, -ids], axis=1),
        "text": pa.array([str(i) for i in ids.tolist()]),
        "list": Ragged(np.repeat(ids, lengths), edges),
    }
    return lay_out([block], *layout(cells, count))


@pytest.mark.parametrize("most", [0, 10_000])
def test_rows_come_cell_by_cell_and_within_one_block_by_block(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MOST_RUNS", most)
    rng = np.random.default_rng(0)
    ids = [np.arange(first, first + rows) for first, rows in ((0, 300), (300, 1), (301, 70), (371, 256))]
    cells = [rng.integers(0, CELLS, len(part)).astype(np.uint16) for part in ids]
    parts = [split(part, where, CELLS) for part, where in zip(ids, cells, strict=True)]
    made: Any = gather(parts, 1, 5)
    wanted = [
        row
        for cell in range(1, 5)
        for part, where in zip(ids, cells, strict=True)
        for row in part[where == cell].tolist()
    ]
    assert made["id"].tolist() == wanted
    assert made["half"].tolist() == [row / 2 for row in wanted]
    assert made["pair"].tolist() == [[row, -row] for row in wanted]
    assert made["text"].to_pylist() == [str(row) for row in wanted]
    assert made["list"].values.tolist() == [row for row in wanted for _ in range(row % 3)]


def test_places_of_more_rows_in_a_cell_than_one_byte_counts() -> None:
    """What a block's edges need is one byte each; what the blocks have together is more."""
    parts = [split(np.arange(200), np.zeros(200, np.uint16), 2) for _ in range(3)]
    assert places(parts, 0, 2, np.array([1000, 2000])).tolist() == list(range(1000, 1600))


def test_many_small_blocks_and_cells_take_memory_in_proportion_to_the_rows() -> None:
    blocks, rows, count = 200, 50, 5000
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, count, rows).astype(np.uint16) for _ in range(blocks)]
    parts = [split(np.arange(rows), where, count) for where in cells]
    assert sum(part.edges.nbytes for part in parts) == blocks * (count + 1)
    tracemalloc.start()
    try:
        made = gather(parts, 0, count)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made["id"]) == blocks * rows
    assert most < 8 << 20  # a tuple for every cell of every block would take some 70 MB
