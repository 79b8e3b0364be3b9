from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from intune.pipelines.errors import StageError
from intune.pipelines.returned import checked, owned
from intune.pipelines.schema import Ragged


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "the function returned NoneType where a non-empty dict of columns is wanted; return dict"),
        ([1], "returned list where"),
        ({}, "returned an empty dict where"),
        (np.zeros(5), "returned ndarray where"),
        (
            {"x": np.zeros(3)},
            "returned 3 rows in column 'x' for a batch of 5; every column must have as many",
        ),
        ({"x": np.zeros(5), "y": torch.zeros(6)}, "returned 6 rows in column 'y' for a batch of 5"),
        ({"x": np.float64(3)}, "a column 'x' that cannot be used: .*float64 was found"),
        ({"x": np.array(3)}, "a column 'x' that cannot be used: .*a scalar was found"),
        ({"x": [1, 2, 3, 4, 5]}, "a column 'x' that cannot be used: .*list was found"),
        ({"x": "abcde"}, "a column 'x' that cannot be used: .*str was found"),
        ({"x": np.array(["a"] * 5)}, "column 'x' .*it holds <U1, which no tensor can; convert it to numbers"),
        ({"x": np.array([None] * 5)}, "it holds object, which no tensor can"),
        ({"x": np.zeros(5, "M8[s]")}, r"it holds datetime64\[s\], which no tensor can"),
        ({"x": np.zeros(5, ">f4")}, "it holds >f4, which no tensor can"),
        ({"x": np.zeros(5, np.longdouble)}, "it holds float128, which no tensor can"),
        ({"x": Ragged(np.zeros(4), np.array([0, 1, 1, 2, 3, 5]))}, "offsets must go from 0 to 4, the number"),
        ({"x": Ragged(np.zeros(4), np.array([1, 1, 1, 2, 3, 4]))}, "offsets must go from 0 to 4"),
        (
            {"x": Ragged(np.zeros(4), np.array([0, 1, 1, 4]))},
            "returned 3 rows in column 'x' for a batch of 5",
        ),
        (
            {"x": Ragged(np.array(["a"] * 4), np.array([0, 1, 1, 2, 3, 4]))},
            "it holds <U1, which no tensor can",
        ),
    ],
    ids=str,
)
def test_what_is_no_block_of_as_many_rows_is_refused_with_what_to_do(made: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        checked(made, 5)


def nested() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are a prototype
        return torch.nested.nested_tensor([torch.zeros(2)] * 5)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(5).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2)] * 5, layout=torch.jagged), "nested"),
        (nested, "nested"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_tensors_of_which_no_rows_can_be_cut_are_refused(make: Any, kind: str, last: bool) -> None:
    with pytest.raises(StageError, match=rf"column 'x' .*it is a {kind} tensor, .*return its to_dense\(\)"):
        checked({"x": make()}, 5, last=last)


def test_columns_that_tensors_hold_pass_as_they_are() -> None:
    kinds = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
    made: dict[str, Any] = {kind: np.zeros((5, 2), kind) for kind in kinds}
    made["t"] = torch.zeros(5)
    made["s"] = pa.array(["a"] * 5)
    made["r"] = Ragged(torch.zeros(3), torch.tensor([0, 0, 1, 2, 3, 3]))
    assert checked(made, 5) is made
    for kind in kinds:
        assert torch.from_numpy(made[kind]).shape == (5, 2)


def test_what_only_another_function_sees_need_not_fit_a_tensor() -> None:
    made = {"x": np.array(["a"] * 5)}
    assert checked(made, 5, last=False) is made


# ---- lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "found"),
    [
        ([0, 1, 1, 2, 3, 4], "list"),
        (np.array([0.0, 1, 1, 2, 3, 4]), "float64"),
        (np.array([0, 1, 1, 2, 3, 4], np.uint64), "uint64"),
        (torch.tensor([0.0, 1, 1, 2, 3, 4]), "torch.float32"),
        (pa.array([0, 1, 1, 2, 3, 4]), "Int64Array"),
        (np.array([[0, 1, 1, 2, 3, 4]]), "int64"),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [True, False])
def test_offsets_that_are_no_whole_numbers_are_refused(offsets: Any, found: str, last: bool) -> None:
    message = rf"column 'x' .*its offsets must be an array of int64 with one dimension, but {found} was found"
    with pytest.raises(StageError, match=message):
        checked({"x": Ragged(np.zeros(4), offsets)}, 5, last=last)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("offsets", [np.arange(6, dtype=np.int32), torch.arange(6, dtype=torch.int16)])
def test_offsets_come_as_int64_whatever_integers_they_were(offsets: Any, last: bool) -> None:
    got: Any = checked({"x": Ragged(np.zeros(5), offsets)}, 5, last=last)["x"]
    assert str(got.offsets.dtype).removeprefix("torch.") == "int64"
    assert type(got.offsets) is type(offsets)
    assert got.offsets.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_offsets_that_decrease_are_refused(make: Any) -> None:
    with pytest.raises(StageError, match=r"column 'x' .*its offsets decrease; row i is values\[offsets"):
        checked({"x": Ragged(np.zeros(4), make([0, 3, 1, 2, 3, 4]))}, 5)


# ---- values that would change ----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
def test_a_mask_is_not_dropped_but_refused(last: bool) -> None:
    masked = np.ma.masked_array(np.arange(5), [False, True, False, False, False])
    for column in (masked, Ragged(masked, np.arange(6))):
        with pytest.raises(StageError, match=r"a masked array, whose mask would be lost; return its filled"):
            checked({"x": column}, 5, last=last)
    assert checked({"x": masked.filled(-1)}, 5)["x"].tolist() == [0, -1, 2, 3, 4]


def test_what_may_only_be_read_is_copied_once_and_nothing_else(tmp_path: Path) -> None:
    constant = np.ones(5)
    constant.flags.writeable = False
    np.arange(5.0).tofile(tmp_path / "numbers")
    mapped = np.memmap(tmp_path / "numbers", dtype=np.float64, mode="r")
    own = np.zeros(5)
    made = {
        "constant": constant,
        "mapped": mapped,
        "repeated": np.broadcast_to(np.float32(3), (5, 2)),
        "own": own,
        "list": Ragged(constant, np.arange(6)),
    }
    got: Any = checked(made, 5)
    assert made["constant"] is constant, "the function's own dict stays as it is"
    assert list(got) == list(made)
    for column in (got["constant"], got["mapped"], got["repeated"], got["list"].values):
        column += 1
    assert got["mapped"].tolist() == [1, 2, 3, 4, 5]
    assert got["repeated"].tolist() == [[4, 4]] * 5
    assert constant.tolist() == [1] * 5
    assert mapped.tolist() == [0, 1, 2, 3, 4]
    assert got["own"] is own
    assert got["list"].offsets is made["list"].offsets  # type: ignore[union-attr]
    assert checked({"x": constant}, 5, last=False)["x"] is constant, "the next function is given a copy"


def test_numbers_and_lists_of_arrow_become_arrays_of_their_own_and_dictionaries_their_values() -> None:
    text = pa.array(["a", "bb", "", "dd", "e"])
    lengths = pc.utf8_length(text)
    made = {
        "lengths": lengths,
        "true": pa.array([True, False, True, True, False]),
        "nan": pa.array([1.0, None, 3.0, 4.0, 5.0]),
        "codes": pa.array([7, 7, 8, 9, 7]).dictionary_encode(),
        "words": text.dictionary_encode(),
        "views": text.cast(pa.string_view()),
        "list": pa.array([[1], [], [2, 3], [], []]),
        "matrix": pa.FixedSizeListArray.from_arrays(pa.array(range(10)), 2),
        "inner": Ragged(lengths, np.arange(6)),
        "text": text,
    }
    got: Any = checked(made, 5)
    assert got["lengths"].tolist() == [1, 2, 0, 2, 1]
    assert got["lengths"].dtype == np.int32
    assert got["true"].tolist() == [True, False, True, True, False]
    assert np.isnan(got["nan"]).tolist() == [False, True, False, False, False]
    assert got["codes"].tolist() == [7, 7, 8, 9, 7]
    assert got["words"].type == pa.string()
    assert got["words"].to_pylist() == text.to_pylist()
    assert got["views"].equals(text)
    assert (got["list"].values.tolist(), got["list"].offsets.tolist()) == ([1, 2, 3], [0, 1, 1, 3, 3, 3])
    assert got["matrix"].tolist() == np.arange(10).reshape(5, 2).tolist()
    assert got["text"] is text
    got["lengths"] += 1
    got["inner"].values[:] = 0
    assert lengths.to_pylist() == [1, 2, 0, 2, 1], "Arrow's arrays never change"
    assert checked({"x": lengths}, 5, last=False)["x"] is lengths
    assert checked({"x": made["views"]}, 5, last=False) == {"x": text}, "Arrow cannot take rows of views"


def test_extension_types_of_arrow_become_what_they_are_stored_as() -> None:
    identifiers = pa.array([bytes([row] * 16) for row in range(5)], pa.binary(16))
    flags = pa.array([1, 0, 0, 1, 1], pa.int8())
    got: Any = checked(
        {
            "id": pa.ExtensionArray.from_storage(pa.uuid(), identifiers),
            "flag": pa.ExtensionArray.from_storage(pa.bool8(), flags),
        },
        5,
    )
    assert got["id"].equals(identifiers.cast(pa.binary()))
    assert got["flag"].tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([1, None, 3, 4, 5]),
            r"array of int64 with nulls, .*fill them with pyarrow.compute.fill_null",
        ),
        (
            pa.array([{"a": 1}] * 5),
            r"array of struct<a: int64>, which no tensor can hold; cast it to numbers or",
        ),
        (pa.nulls(5), r"an Arrow array of null, which no tensor can hold"),
    ],
)
def test_what_of_arrow_has_no_number_is_refused(column: Any, message: str) -> None:
    with pytest.raises(StageError, match=f"column 'x' that cannot be used: it is .*{message}"):
        checked({"x": column}, 5)


# ---- parts of something large --------------------------------------------------------------------------------------

ROWS = 1000


def test_small_parts_of_an_array_that_is_kept_are_copied(tmp_path: Path) -> None:
    """A pool of negative samples, say: any batch would hold all of it."""
    pool = np.arange(400_000)
    mapped = np.memmap(tmp_path / "pool", np.float32, "w+", shape=(ROWS, 300))
    tensor = torch.arange(400_000)
    part = Ragged(pool[10 : 10 + ROWS], np.arange(ROWS + 1))
    made = {"x": pool[:ROWS], "y": mapped[:, 0], "z": tensor[5 : 5 + ROWS], "bag": part}
    got: dict[str, Any] = owned(made, {})
    for name in "xyz":
        assert got[name].tolist() == made[name].tolist()  # type: ignore[attr-defined]
    assert (got["bag"].values.tolist(), got["bag"].offsets.tolist()) == (
        list(range(10, 10 + ROWS)),
        list(range(ROWS + 1)),
    )
    assert got["x"].base is got["y"].base is got["bag"].values.base is None
    assert got["z"].untyped_storage().nbytes() == 8 * ROWS
    assert list(got) == list(made)


def test_parts_that_hold_little_more_or_what_is_held_anyway_stay_as_they_are() -> None:
    row_group = np.arange(400_000)
    given: Any = {"x": row_group[:ROWS], "bag": Ragged(row_group[:ROWS], np.arange(ROWS + 1))}
    made_here = np.zeros((40, ROWS), np.float32).repeat(10, axis=1)  # its rows are columns, one large array
    tensor = torch.zeros(400_000)
    for made in (
        {"x": given["x"], "y": given["x"].reshape(ROWS, 1)[:, 0], "z": row_group[ROWS : 2 * ROWS]},
        {"bag": given["bag"], "other": Ragged(given["bag"].values[:5], np.array([0, 5]))},
        {f"c{number}": column for number, column in enumerate(made_here)},
        {"x": np.zeros(100_000)[:10]},
        {"x": np.zeros(200_000)[:60_000]},
        {"x": tensor[:200_000], "y": tensor[200_000:]},
        {"x": np.zeros(400_000), "y": pa.array(["a"])},
    ):
        assert owned(made, given) is made


def test_of_a_large_array_all_parts_count_together() -> None:
    whole = np.zeros((8, 100_000), np.float32)
    made = {"x": whole[0], "y": whole[1]}
    assert all(not np.shares_memory(column, whole) for column in owned(made, {}).values())
    made["z"] = whole[2]
    assert owned(made, {}) is made
