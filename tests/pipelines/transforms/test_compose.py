from __future__ import annotations

import pickle

import numpy as np
import pytest

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Block
from intune.pipelines.transforms import Cast, Clip, Compose, Rename


def double(block: Block) -> Block:
    return {name: column * 2 for name, column in block.items()}


def test_steps_run_in_order() -> None:
    block = {"x": np.array([3, 5])}
    made = Compose(Clip(columns="x", max=4), double, Rename(names={"x": "y"}))(block)
    assert {name: column.tolist() for name, column in made.items()} == {"y": [6, 8]}
    assert block["x"].tolist() == [3, 5]


def test_no_step_is_a_copy_of_the_dict() -> None:
    block = {"x": np.arange(2)}
    made = Compose()(block)
    assert made == block
    assert made is not block


def test_rowwise_only_if_every_step_says_so() -> None:
    rowwise = Compose(Clip(columns="x", max=4), Cast(columns="x", dtype="int8"))
    assert rowwise.rowwise
    assert Compose(rowwise, rowwise).rowwise
    assert not Compose(rowwise, double).rowwise


def test_equal_steps_are_equal_and_pickle() -> None:
    first, second = (Compose(Clip(columns="x", max=4)) for _ in range(2))
    assert first == second != Compose(Clip(columns="x", max=5))
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_step_that_cannot_be_called() -> None:
    with pytest.raises(ConfigError, match=r"`steps`\[1\] is int, not callable"):
        Compose(double, 3)  # type: ignore[arg-type]
