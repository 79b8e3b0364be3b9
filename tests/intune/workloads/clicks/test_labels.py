from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from intune.errors import DataError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Compose, Stack
from intune.workloads.clicks.labels import MISSING_LABEL, Labelled, as_labels


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float32", "float64"])
def test_labels_of_any_type_of_number_become_float32(dtype: str) -> None:
    made = as_labels("y", np.array([0, 1, 1, 0], dtype=dtype))
    assert made.dtype == np.float32
    assert made.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 1, 2, 2], r"column `y` holds 2\.0 in 2 of 4 rows, but labels must be 0 or 1; convert"),
        ([1, -1], "column `y` holds -1 in 1 of 2 rows"),
        ([1.0, math.nan], "column `y` holds NaN or null in 1 of 2 rows"),
        ([1.0, 1 + 1e-12], "column `y` holds 1.000000000001 in 1 of 2 rows"),
        ([1, MISSING_LABEL], r"column `y` holds null \(or 127\) in 1 of 2 rows"),
        ([1.0, 127.0], r"column `y` holds null \(or 127\.0\) in 1 of 2 rows"),
    ],
)
def test_labels_that_are_neither_0_nor_1_are_refused(values: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_labels("y", np.array(values))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array(["0", "1"]), "column `y` holds string, but labels must be numbers"),
        (np.zeros((2, 1), np.float32), "column `y` holds a matrix of float32"),
        (Ragged(np.zeros(2), np.array([0, 1, 2])), "column `y` holds lists of float64"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(column: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        as_labels("y", column)


def test_the_label_may_be_called_what_a_result_is_called_and_a_feature_label() -> None:
    features = Compose(Stack(columns="label", into="dense", dtype="float32"))
    made = Labelled(label="dense", features=features)({"dense": np.array([0, 1]), "label": np.array([5, 6])})
    assert list(made) == ["label", "dense"]
    assert made["label"].tolist() == [0, 1]  # type: ignore[union-attr]
    assert made["dense"].tolist() == [[5], [6]]  # type: ignore[union-attr]


def test_rows_matter_to_each_other_only_where_they_do_to_the_features() -> None:
    assert Labelled(label="y").rowwise
    assert not Labelled(label="y", features=Compose(dict)).rowwise
