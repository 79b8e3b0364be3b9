from __future__ import annotations

import numpy as np
import pytest

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.transforms import Select

BLOCK = {name: np.arange(2) for name in ("label", "I1", "I2", "C2", "C10", "C1")}


def test_columns_are_kept_in_the_order_given() -> None:
    made = Select(columns=["C*", "label", "C1"])(BLOCK)
    assert list(made) == ["C2", "C10", "C1", "label"]
    assert made["C2"] is BLOCK["C2"]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_where_there_is_one() -> None:
    block = {"a[0]": np.arange(1), "a0": np.arange(1)}
    assert list(Select(columns="a[0]")(block)) == ["a[0]"]
    assert list(Select(columns="a[0-9]")(block)) == ["a0"]


def test_unknown_columns_are_named_with_similar_ones() -> None:
    with pytest.raises(SchemaError, match=r"Select: there is no column `lable`; did you mean `label`\?"):
        Select(columns="lable")(BLOCK)
    with pytest.raises(SchemaError, match=r"there is no column `zzz`; the block has `label`, `I1`"):
        Select(columns="zzz")(BLOCK)
    with pytest.raises(SchemaError, match=r"no column matches `D\*`; the block has `label`"):
        Select(columns="D*")(BLOCK)
    with pytest.raises(SchemaError, match=r"`x0`, .*`x11` and 8 more"):
        Select(columns="nothing?")({f"x{i}": np.arange(1) for i in range(20)})
    with pytest.raises(SchemaError, match="the block has no column at all"):
        Select(columns="a")({})


def test_names_must_be_names() -> None:
    for columns in ([], "", [1], 5, None):
        with pytest.raises(ConfigError, match=r"`columns`=.* names no column"):
            Select(columns=columns)  # type: ignore[arg-type]
