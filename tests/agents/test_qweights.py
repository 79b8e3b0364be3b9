"""Files of weights: what is written is read, and what is not one is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from intune.agents.network import QNetwork
from intune.agents.qweights import SHIPPED, Weights, load
from intune.pipelines.errors import ConfigError


def test_written_and_read_again(tmp_path: Path) -> None:
    arrays = QNetwork().arrays()
    Weights(arrays=arrays, gamma=0.7, recipe={"seed": 3, "score": 0.5}).save(tmp_path / "w.npz")
    found = load(tmp_path / "w.npz")
    assert found.gamma == 0.7
    assert found.recipe == {"seed": 3, "score": 0.5}
    assert set(found.arrays) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], value)


def test_the_shipped_ones_are_small_and_say_how_they_were_made() -> None:
    assert SHIPPED.stat().st_size < 2**20
    found = load()
    assert 0.5 < found.recipe["score"] <= 1.2
    assert {"seed", "episodes", "jobs", "families", "seconds"} <= set(found.recipe)
    QNetwork().load(found.arrays)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights at .*none\.npz; make them with `intune pretrain"):
        load(tmp_path / "none.npz")


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"this is no archive")
    with pytest.raises(ConfigError, match=r"bad\.npz holds no weights"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"bad\.npz holds no weights"):
        load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ConfigError, match=r"bad\.npz holds no weights"):
        load(path)


def test_parts_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    arrays = QNetwork().arrays()
    Weights(arrays={name: value for name, value in arrays.items() if name != "head_in.bias"}).save(
        tmp_path / "w.npz"
    )
    with pytest.raises(ConfigError, match=r"head_in\.bias"):
        load(tmp_path / "w.npz")
    Weights(arrays=arrays | {"value.weight": np.zeros((1, 3), dtype=np.float32)}).save(tmp_path / "w.npz")
    with pytest.raises(ConfigError, match=r"value\.weight.*\(1, 3\)"):
        load(tmp_path / "w.npz")
    Weights(arrays=arrays | {"value.bias": np.array([np.nan], dtype=np.float32)}).save(tmp_path / "w.npz")
    with pytest.raises(ConfigError, match=r"value\.bias.*finite"):
        load(tmp_path / "w.npz")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    """Pickled objects could run anything; they are not read."""
    path = tmp_path / "evil.npz"
    recipe = np.frombuffer(json.dumps({}).encode(), dtype=np.uint8)
    np.savez(path, recipe=recipe, thing=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match=r"evil\.npz holds no weights"):
        load(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    path.write_bytes(SHIPPED.read_bytes()[:20_000])
    with pytest.raises(ConfigError, match=r"cut\.npz holds no weights"):
        load(path)
