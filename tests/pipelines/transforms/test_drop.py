from __future__ import annotations

import numpy as np
import pytest

from intune.pipelines.errors import SchemaError
from intune.pipelines.transforms import Drop

BLOCK = {name: np.arange(2) for name in ("a1", "b", "a2")}


def test_columns_are_left_out() -> None:
    assert list(Drop(columns="a*")(BLOCK)) == ["b"]
    assert list(Drop(columns=["b"])(BLOCK)) == ["a1", "a2"]
    assert list(BLOCK) == ["a1", "b", "a2"]


def test_a_column_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(SchemaError, match="Drop: there is no column `a3`; did you mean"):
        Drop(columns="a3")(BLOCK)
