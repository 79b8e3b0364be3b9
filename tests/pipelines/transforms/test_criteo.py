from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from intune.pipelines.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Block, Ragged, slice_block
from intune.pipelines.transforms import VocabularyBuilder, criteo

DENSE = [f"I{i}" for i in range(1, 14)]
SPARSE = [f"C{i}" for i in range(1, 27)]
SIZES = [1, 10, 1 << 16, 10_000_019] * 6 + [5, 7]


def raw(rows: int, categories: str = "integers") -> Block:
    """Criteo-like columns: counts with gaps and some −1, ids with a long tail, labels of 0 and 1."""
    rng = np.random.default_rng(1)
    block: Block = {"label": rng.integers(0, 2, rows, np.int32)}
    for name in DENSE:
        column = np.floor(rng.lognormal(2, 2, rows)).astype(np.float32) - 1
        column[rng.random(rows) < 0.2] = np.nan
        block[name] = column
    for name in SPARSE:
        ids = np.where(rng.random(rows) < 0.1, -1, rng.zipf(1.5, rows) % 2**32)
        if categories == "integers":
            block[name] = ids
        elif categories == "strings":
            block[name] = pa.array([None if id_ < 0 else f"{id_:08x}" for id_ in ids.tolist()], pa.string())
        else:
            lengths = rng.integers(0, 4, rows)
            offsets = np.cumsum([0, *lengths])
            block[name] = Ragged(rng.integers(0, 2**40, offsets[-1]), offsets)
    return block


def expected_dense(block: Block) -> list[list[float]]:
    rows = zip(*(block[name].tolist() for name in DENSE), strict=True)
    return [[math.log1p(0 if math.isnan(x) else max(x, 0)) for x in row] for row in rows]


def test_integers(reference: Any) -> None:
    block = raw(300)
    made = criteo(size=SIZES)(block)
    assert list(made) == ["label", "dense", "sparse"]
    assert (made["label"].dtype, made["label"].shape) == (np.float32, (300,))
    np.testing.assert_array_equal(made["label"], block["label"])
    assert (made["dense"].dtype, made["dense"].shape) == (np.float32, (300, 13))
    np.testing.assert_allclose(made["dense"], expected_dense(block), rtol=1e-5)
    assert (made["sparse"].dtype, made["sparse"].shape) == (np.int64, (300, 26))
    for feature, (name, size) in enumerate(zip(SPARSE, SIZES, strict=True)):
        assert made["sparse"][:, feature].tolist() == [
            reference.hash(id_, size) for id_ in block[name].tolist()
        ]


def test_strings(reference: Any) -> None:
    block = raw(300, "strings")
    made = criteo(size=1000, seed=5, salted=True)(block)
    for feature, name in enumerate(SPARSE):
        expected = [0 if s is None else reference.hash(s, 1000, 5, name) for s in block[name].to_pylist()]
        assert made["sparse"][:, feature].tolist() == expected


def test_lists_stay_lists(reference: Any) -> None:
    block = raw(50, "lists")
    made = criteo(size=SIZES, multi_hot=True)(block)
    assert list(made) == ["label", "dense", *SPARSE]
    assert made["C4"].values.tolist() == [
        reference.hash(id_, SIZES[3]) for id_ in block["C4"].values.tolist()
    ]
    assert made["C4"].offsets is block["C4"].offsets
    with pytest.raises(SchemaError, match="column `C1` holds lists of int64, more than one number a row"):
        criteo(size=SIZES)(block)


@pytest.mark.parametrize("categories", ["integers", "strings"])
def test_a_vocabulary_instead_of_hashing(categories: str) -> None:
    block = raw(500, categories)
    builder = VocabularyBuilder("C*")
    builder.update(block)
    vocabulary = builder.build(min_count=3, first=2, null=1)
    made = criteo(vocabulary=vocabulary)(block)
    apart = vocabulary(block)
    assert made["sparse"].dtype == np.int64
    np.testing.assert_array_equal(made["sparse"], np.stack([apart[name] for name in SPARSE], axis=1))
    assert made["sparse"].max() > 2
    assert list(criteo(vocabulary=vocabulary, multi_hot=True)(block)) == ["label", "dense", *SPARSE]


def test_numbers_as_integers_without_logarithm_and_clipped() -> None:
    block = raw(100)
    whole = block | {name: np.nan_to_num(block[name], nan=-1).astype(np.int64) for name in DENSE}
    np.testing.assert_array_equal(criteo(size=10)(whole)["dense"], criteo(size=10)(block)["dense"])
    plain = np.maximum(np.stack([whole[name] for name in DENSE], axis=1), 0)
    for source in (block, whole):
        made = criteo(size=10, log=False)(source)["dense"]
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, plain, rtol=1e-6)
        clipped = criteo(size=10, clip=20)(source)["dense"]
        np.testing.assert_allclose(clipped, np.log1p(np.minimum(plain, 20)), rtol=1e-5)
    doubles = block | {name: block[name].astype(np.float64) for name in DENSE}
    assert criteo(size=10)(doubles)["dense"].dtype == np.float32


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("huge", [np.inf, 1e39])
def test_numbers_that_float32_does_not_have_are_refused_by_their_columns_name(log: bool, huge: float) -> None:
    block = raw(50)
    block["I4"] = block["I4"].astype(np.float64)
    block["I4"][[3, 7]] = huge
    with pytest.raises(
        DataError,
        match="criteo: column `I4` holds infinity, or more than float32 can, in 2 of 50 rows; write",
    ):
        criteo(size=10, log=log)(block)
    with pytest.raises(DataError, match="column `I4`"):
        criteo(size=10, log=log, dense=["I1?", "I*"])(block)
    if not log:
        wide = block | {"I2": np.zeros((50, 3), np.float32)}
        with pytest.raises(DataError, match="column `I4`"):
            criteo(size=10, log=False)(wide)
    # What is clipped is finite, and what is below 0 counts as 0.
    assert criteo(size=10, log=log, clip=100)(block)["dense"].max() <= 100
    block["I4"][[3, 7]] = -huge
    assert criteo(size=10, log=log)(block)["dense"][3, 3] == 0


def test_a_column_may_be_called_as_what_is_made_of_others() -> None:
    """Or as a pattern means: the matrix of numbers was taken for a category by `d*`."""
    block: Block = {"sparse": np.array([1.0]), "dense": np.array([7]), "device": np.array([7])}
    options: dict[str, Any] = {"size": 10, "dense": ["sparse"], "label": None}
    made = criteo(sparse=["dense", "device"], **options)(block)
    assert made["dense"].tolist() == [[pytest.approx(math.log(2))]]  # type: ignore[union-attr]
    assert made["sparse"].shape == (1, 2)  # type: ignore[union-attr]
    assert criteo(sparse="d*", **options)(block)["sparse"].tolist() == made["sparse"].tolist()  # type: ignore[union-attr]
    with pytest.raises(
        SchemaError, match="criteo: there is already a column `dense`; give the result another"
    ):
        criteo(sparse=["dense"], multi_hot=True, **options)(block)


def test_no_rows_are_no_numbers_that_float32_does_not_have() -> None:
    assert criteo(size=10)(slice_block(raw(5), 2, 2))["dense"].shape == (0, 13)


def test_other_names_and_no_label() -> None:
    block = {"clicked": np.array([1]), "age": np.array([np.nan]), "u": np.array([1]), "v": np.array([2])}
    made = criteo(size=5, dense=["age"], sparse=["u", "v"], label="clicked")(block)
    assert {name: column.shape for name, column in made.items()} == {
        "clicked": (1,),
        "dense": (1, 1),
        "sparse": (1, 2),
    }
    assert list(criteo(size=5, dense=["age"], sparse=["u", "v"], label=None)(block)) == ["dense", "sparse"]


@pytest.mark.parametrize("categories", ["integers", "strings"])
def test_pieces_and_pickles_give_the_same(categories: str) -> None:
    transform = criteo(size=SIZES)
    assert transform.rowwise
    block = raw(6000, categories)
    whole = transform(block)
    copy = pickle.loads(pickle.dumps(transform))
    for start, stop in ((0, 6000), (0, 1), (17, 2600), (5999, 6000), (40, 40)):
        part = copy(slice_block(block, start, stop))
        for name, column in part.items():
            np.testing.assert_array_equal(column, whole[name][start:stop])


def test_torch_takes_it_without_a_copy() -> None:
    made = criteo(size=SIZES)(raw(1000))
    for column in made.values():
        tensor = torch.from_numpy(column)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() == column.ctypes.data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"exactly one of `size` and `vocabulary` .* but neither is given"),
        ({"size": 0}, "`size`=0"),
        ({"size": 5, "clip": 0}, "`clip`=0 must be above 0"),
        ({"size": 5, "clip": "x"}, "`clip`='x' must be a number"),
        ({"size": 5, "sparse": []}, r"`sparse`=\[\] names no column"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        criteo(**arguments)


def test_both_a_size_and_a_vocabulary() -> None:
    builder = VocabularyBuilder("C1")
    builder.update({"C1": np.arange(2)})
    with pytest.raises(ConfigError, match="but both are given; give the tables"):
        criteo(size=5, vocabulary=builder.build())


def test_the_number_of_sizes_and_missing_columns() -> None:
    with pytest.raises(SchemaError, match="`size` lists 2 tables, but 26 columns"):
        criteo(size=[5, 6])(raw(2))
    block = raw(2)
    del block["C7"]
    with pytest.raises(SchemaError, match="criteo: there is no column `C7`; did you mean"):
        criteo(size=5)(block)


def test_logs_without_numbers_have_no_dense_matrix() -> None:
    made = criteo(size=5, dense=())(raw(3))
    assert set(made) == {"label", "sparse"}
