from __future__ import annotations

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import FirstX


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=10), x=st.integers(1, 7))
def test_each_row_keeps_its_first_elements(rows: list[list[int]], x: int) -> None:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    numbers = Ragged(np.array(list(chain.from_iterable(rows)), np.int64), offsets)
    strings = Ragged(pa.array([str(value) for value in chain.from_iterable(rows)], pa.string()), offsets)
    made = FirstX(columns="*", x=x)({"n": numbers, "s": strings})
    kept = [row[:x] for row in rows]
    for name in ("n", "s"):
        assert made[name].offsets.dtype == np.int64
        assert np.diff(made[name].offsets).tolist() == [len(row) for row in kept]
    assert made["n"].values.tolist() == list(chain.from_iterable(kept))
    assert made["s"].values.to_pylist() == [str(value) for value in chain.from_iterable(kept)]


def test_short_lists_are_not_copied() -> None:
    column = Ragged(np.arange(3), np.array([0, 1, 3]))
    assert FirstX(columns="x", x=2)({"x": column})["x"] is column


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="`x`=0 must be a whole number, 1 or more"):
        FirstX(columns="x", x=0)
    with pytest.raises(SchemaError, match="FirstX: column `x` holds int64, but it takes list columns"):
        FirstX(columns="x", x=1)({"x": np.arange(3)})
    tensors = Ragged(torch.arange(3), torch.tensor([0, 1, 3]))
    with pytest.raises(SchemaError, match="FirstX: column `x` holds lists of Tensor, but it takes"):
        FirstX(columns="x", x=1)({"x": tensors})
