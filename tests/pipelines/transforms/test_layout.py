from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.schema import Array
from intune.pipelines.transforms import layout
from intune.pipelines.transforms.layout import Work, empty, interleaved, leave, side_by_side


def doubling(arrays: list[Array], dtypes: list[str], seen: list[tuple[int, ...]]) -> Work:
    def run(piece: Array, which: list[int], elements: slice) -> None:
        assert piece.flags.c_contiguous
        assert piece.shape == (len(which), elements.stop - elements.start)
        for row, column in zip(piece, which, strict=True):
            np.testing.assert_array_equal(row, arrays[column][elements])
        seen.append(piece.shape)
        piece *= 2

    return Work(arrays=arrays, dtypes=[np.dtype(dtype) for dtype in dtypes], run=run)


@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(["int64", "float32"])), min_size=1, max_size=8
    ),
    tile=st.integers(1, 30),
)
def test_every_element_is_worked_on_once_in_pieces(shapes: list[tuple[int, str]], tile: int) -> None:
    arrays = [np.arange(length, dtype=dtype) + 1 for length, dtype in shapes]
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TILE", tile)
        made = side_by_side(doubling(arrays, [dtype for _, dtype in shapes], seen))
    for source, result in zip(arrays, made, strict=True):
        assert result.dtype == source.dtype
        np.testing.assert_array_equal(result, source * 2)
        np.testing.assert_array_equal(source, np.arange(len(source)) + 1)
    assert all(rows * elements <= tile for rows, elements in seen)


@given(
    dtypes=st.lists(st.sampled_from(["int32", "float32"]), min_size=1, max_size=8),
    length=st.integers(0, 40),
    tile=st.integers(8, 60),
)
def test_a_matrix_has_the_results_as_columns(dtypes: list[str], length: int, tile: int) -> None:
    arrays = [np.arange(length) + position for position in range(len(dtypes))]
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TILE", tile)
        made = interleaved(doubling(arrays, dtypes, seen))
    assert made.flags.c_contiguous
    assert made.dtype == np.result_type(*dtypes)
    np.testing.assert_array_equal(made, np.stack(arrays, axis=1) * 2)
    assert all(rows * elements <= tile for rows, elements in seen)


def test_copies_are_copies() -> None:
    array = np.arange(3)
    (made,) = side_by_side(Work(arrays=[array], dtypes=[array.dtype], run=leave))
    made[:] = 9
    assert array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (5,), (300, 300)])
def test_memory_is_writable_and_aligned(shape: tuple[int, ...]) -> None:
    made = empty(shape, "float64")
    made[...] = 1
    assert made.shape == shape
    assert made.dtype == np.float64
    assert made.flags.c_contiguous
    assert made.flags.aligned
