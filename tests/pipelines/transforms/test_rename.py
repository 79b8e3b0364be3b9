from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.transforms import Rename

BLOCK = {"a": np.arange(1), "b": np.arange(2), "c": np.arange(3)}


def test_columns_keep_their_place() -> None:
    made = Rename(names={"b": "x"})(BLOCK)
    assert list(made) == ["a", "x", "c"]
    assert made["x"] is BLOCK["b"]


def test_two_columns_can_swap_names() -> None:
    made = Rename(names={"a": "b", "b": "a"})(BLOCK)
    assert list(made) == ["b", "a", "c"]
    assert made["b"] is BLOCK["a"]


def test_names_that_are_missing_or_taken() -> None:
    with pytest.raises(SchemaError, match="Rename: there is no column `d`"):
        Rename(names={"d": "x"})(BLOCK)
    with pytest.raises(SchemaError, match="Rename: there is already a column `c`"):
        Rename(names={"a": "c"})(BLOCK)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "`names`={} must map"),
        ("a", "`names`='a' must map"),
        ({"a": "x", "b": "x"}, "gives two columns one name"),
        ({"a": ""}, "`names` maps 'a' to ''"),
    ],
)
def test_nonsense_is_refused_at_once(names: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rename(names=names)
