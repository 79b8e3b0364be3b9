from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from intune.errors import DataError, NotFoundError, SchemaError
from intune.pipelines import Budget
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms.criteo import DENSE, SPARSE
from intune.workloads.clicks.data import (
    MISSING_ID,
    ClickData,
    build_vocabulary,
    check_held_out,
    find_click_data,
    to_batches,
)
from intune.workloads.clicks.unified_embedding import WORD_IDS

SIZES = (50,) * 26


def write(path: Path, rows: int = 40, *, seed: int = 0, text: bool = False, lists: bool = False) -> None:
    """Click logs with nulls in every column but the label."""
    rng = np.random.default_rng(seed)
    table = {"label": rng.integers(0, 2, size=rows).astype(np.float32)}
    for name in DENSE:
        table[name] = pa.array(rng.normal(3, 4, size=rows).astype(np.float32), mask=rng.random(rows) < 0.2)
    for name in SPARSE:
        ids = rng.integers(0, 2**32, size=rows)
        if lists:
            table[name] = [ids[: rng.integers(0, 4)].tolist() for _ in range(rows)]
        elif text:
            table[name] = [None if rng.random() < 0.2 else f"{i:08x}" for i in ids]
        else:
            table[name] = pa.array(ids, mask=rng.random(rows) < 0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=10)


def batches(folder: Path) -> list[dict[str, object]]:
    found = find_click_data(str(folder))
    pipeline = to_batches(found, found.train, batch_size=8, ids=SIZES)
    with pipeline.loader(executor="threads") as loader:
        return list(loader)


def test_a_folder_of_the_data_command_has_train_test_and_what_is_known_of_them(tmp_path: Path) -> None:
    write(tmp_path / "train" / "b.parquet")
    write(tmp_path / "train" / "a.parquet")
    write(tmp_path / "test" / "a.parquet")
    description = {
        "schema_version": 1,
        "cardinalities": {name: 10 + number for number, name in enumerate(SPARSE)},
        "teacher": {"auc": {"train": 0.81, "test": 0.8}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = find_click_data(str(tmp_path))
    assert [Path(path).name for path in found.train] == ["a.parquet", "b.parquet"]
    assert found.test == (str(tmp_path / "test" / "a.parquet"),)
    assert found.cardinalities == tuple(range(10, 36))
    assert found.best_auc == 0.8


def test_a_folder_with_train_only_holds_nothing_out_and_knows_nothing(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.parquet")
    found = find_click_data(str(tmp_path))
    assert found.test == ()
    assert found.cardinalities is None
    assert found.best_auc is None


def test_data_converted_from_logs_has_a_description_without_a_teacher(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 1, "kind": "criteo"}))
    assert find_click_data(str(tmp_path)).best_auc is None


def test_of_plain_files_the_last_is_held_out(tmp_path: Path) -> None:
    for name in ("day_2", "day_0", "day_1"):
        write(tmp_path / f"{name}.parquet")
    for data in (str(tmp_path), str(tmp_path / "day_*.parquet"), tmp_path.as_uri()):
        found = find_click_data(data)
        assert [Path(path).name for path in found.train] == ["day_0.parquet", "day_1.parquet"]
        assert [Path(path).name for path in found.test] == ["day_2.parquet"]


def test_files_without_rows_are_neither_held_out_nor_in_the_way(tmp_path: Path) -> None:
    for name, rows in (("part-0", 0), ("part-1", 40), ("part-2", 40), ("part-3", 0)):
        write(tmp_path / f"{name}.parquet", rows)
    found = find_click_data(str(tmp_path))
    assert [Path(path).name for path in found.train] == ["part-1.parquet"]
    assert [Path(path).name for path in found.test] == ["part-2.parquet"]
    (tmp_path / "part-2.parquet").unlink()
    alone = find_click_data(str(tmp_path))
    assert (alone.rows, alone.test) == (40, ())


def test_a_single_file_is_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "only.parquet")
    found = find_click_data(str(tmp_path / "only.parquet"))
    assert found.train == (str(tmp_path / "only.parquet"),)
    assert found.test == ()


def test_what_is_not_there_and_what_is_no_click_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        find_click_data(str(tmp_path / "nowhere"))
    pq.write_table(pa.table({"label": [1.0], "I1": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match=r"lacks the columns I2, .*C26; click logs have label, I1 … I13"):
        find_click_data(str(tmp_path))


def test_batches_of_integer_ids_are_what_the_model_takes(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    found = batches(tmp_path / "x.parquet")
    assert len(found) == 5
    for batch in found:
        assert batch.keys() == {"label", "dense", "sparse"}
        dense, sparse = batch["dense"], batch["sparse"]
        assert isinstance(dense, torch.Tensor)
        assert isinstance(sparse, torch.Tensor)
        assert (dense.shape, dense.dtype) == ((8, 13), torch.float32)
        assert (sparse.shape, sparse.dtype) == ((8, 26), torch.int64)
        assert not torch.isnan(dense).any()
        assert 0 <= sparse.min() <= sparse.max() < 50
    label = torch.cat([batch["label"] for batch in found])  # type: ignore[misc]
    assert label.tolist() == pq.read_table(tmp_path / "x.parquet")["label"].to_pylist()


def test_missing_integers_share_a_row_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["C1"].null_count
    filled = table.set_column(table.schema.get_field_index("C1"), "C1", table["C1"].fill_null(MISSING_ID))
    pq.write_table(filled, tmp_path / "y.parquet", row_group_size=10)
    left, right = (batches(tmp_path / f"{name}.parquet") for name in "xy")
    assert all(torch.equal(a["sparse"], b["sparse"]) for a, b in zip(left, right, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("type_", [pa.uint8(), pa.uint32(), pa.uint64(), pa.list_(pa.uint32())])
@pytest.mark.parametrize("vocabulary", [False, True])
def test_missing_ids_of_unsigned_types_are_an_id_like_others(
    tmp_path: Path, type_: pa.DataType, vocabulary: bool
) -> None:
    (tmp_path / "dataset.json").write_text(
        '{"schema_version": 1, "columns": {"label": "y", "dense": [], "categorical": ["c"]}}'
    )
    ids: list[Any] = [3, None, 4, None]
    if pa.types.is_list(type_):
        ids = [[one] for one in ids]
    pq.write_table(pa.table({"y": [0, 1, 0, 1], "c": pa.array(ids, type_)}), tmp_path / "x.parquet")
    found = find_click_data(str(tmp_path))
    made = build_vocabulary(found) if vocabulary else WORD_IDS
    with to_batches(found, found.train, batch_size=4, ids=made).loader(executor="threads") as loader:
        (batch,) = loader
    rows = (batch["c"].values if found.has_lists else batch["sparse"]).flatten().tolist()
    assert rows[1] == rows[3]
    assert len(set(rows)) == 3


@pytest.mark.parametrize("type_", [pa.bool_(), pa.int8(), pa.float64()])
def test_missing_numbers_are_0(tmp_path: Path, type_: pa.DataType) -> None:
    (tmp_path / "dataset.json").write_text(
        '{"schema_version": 1, "columns": {"label": "y", "dense": ["x"], "categorical": ["c"]}}'
    )
    table = pa.table({"y": [0, 1], "x": pa.array([None, 1]).cast(type_), "c": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    found = find_click_data(str(tmp_path))
    with to_batches(found, found.train, batch_size=2, ids=9).loader(executor="threads") as loader:
        (batch,) = loader
    assert batch["dense"].expm1().flatten().tolist() == pytest.approx([0, 1])


def test_text_ids_are_hashed(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", text=True)
    sparse = torch.cat([batch["sparse"] for batch in batches(tmp_path / "x.parquet")])  # type: ignore[misc]
    assert sparse.shape == (40, 26)
    assert len(sparse.unique()) > 40


def test_lists_of_ids_stay_lists(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", lists=True)
    expected = pq.read_table(tmp_path / "x.parquet")["C7"].to_pylist()
    found = [batch["C7"] for batch in batches(tmp_path / "x.parquet")]
    assert all(isinstance(column, Ragged) for column in found)
    lengths = torch.cat([column.lengths for column in found])  # type: ignore[attr-defined]
    assert lengths.tolist() == [len(row) for row in expected]


def test_shuffled_rows_are_the_same_rows_in_another_order(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    found = find_click_data(str(tmp_path))
    sums = []
    for seed in (None, 1, 2):
        pipeline = to_batches(
            found,
            found.train,
            batch_size=8,
            ids=SIZES,
            shuffle=0 if seed is None else 4,
            seed=seed or 0,
        )
        with pipeline.loader(executor="threads") as loader:
            sums.append(torch.cat([batch["dense"].sum(1) for batch in loader]))
    assert not torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[1], sums[2])
    assert torch.equal(sums[0].sort().values, sums[1].sort().values)


COLUMNS = {"label": "y", "dense": ["price"], "categorical": ["shop", "item"]}


def shop(label: Any = (0, 1, 1, 0), **columns: Any) -> pa.Table:
    """Click logs of a shop, whose columns have names of their own."""
    made = {
        "y": pa.array(label),
        "price": [1.0, 2, 3, None],
        "shop": ["a", "b", None, "a"],
        "item": [7, 8, 9, 7],
        **columns,
    }
    return pa.table(made)


def write_shop(
    folder: Path, train: pa.Table, test: pa.Table | None = None, columns: Any = COLUMNS, **more: Any
) -> ClickData:
    for split, table in (("train", train), ("test", train if test is None else test)):
        (folder / split).mkdir(parents=True)
        pq.write_table(table, folder / split / "0.parquet", row_group_size=2)
    described = {"schema_version": 1, "columns": columns, **more}
    (folder / "dataset.json").write_text(json.dumps(described))
    return find_click_data(str(folder))


def one_batch(data: ClickData, paths: tuple[str, ...] | None = None) -> dict[str, Any]:
    pipeline = to_batches(data, paths or data.train, batch_size=4, ids=(50,) * len(data.columns.sparse))
    with pipeline.loader(executor="threads") as loader:
        (batch,) = loader
        return dict(batch)


@pytest.mark.parametrize("label", [[0, 1, 1, 0], [0.0, 1, 1, 0], [False, True, True, False]])
def test_a_label_of_any_name_and_type_is_delivered_as_label(tmp_path: Path, label: list[Any]) -> None:
    data = write_shop(tmp_path / "d", shop(label))
    for paths in (data.train, data.test):
        batch = one_batch(data, paths)
        assert batch.keys() == {"label", "dense", "sparse"}
        assert (batch["label"].dtype, batch["label"].tolist()) == (torch.float32, [0, 1, 1, 0])


def test_another_column_may_be_called_label(tmp_path: Path) -> None:
    second = ["p", "q", "r", "s"]
    beside = write_shop(tmp_path / "beside", shop().append_column("label", [second]))
    assert one_batch(beside)["label"].tolist() == [0, 1, 1, 0]
    columns = {"label": "y", "dense": ["price"], "categorical": ["label", "item"]}
    among = write_shop(tmp_path / "among", shop().append_column("label", [second]), None, columns)
    batch = one_batch(among)
    assert batch["label"].tolist() == [0, 1, 1, 0]
    assert batch["sparse"].shape == (4, 2)


def test_a_label_may_be_called_what_the_inputs_are_called_in_a_batch(tmp_path: Path) -> None:
    table = shop().rename_columns(["dense", "price", "shop", "item"])
    batch = one_batch(write_shop(tmp_path / "d", table, None, {**COLUMNS, "label": "dense"}))
    assert batch["label"].tolist() == [0, 1, 1, 0]
    assert batch["dense"].shape == (4, 1)


def test_lists_of_ids_may_not_be_called_what_a_batch_has_already(tmp_path: Path) -> None:
    table = shop(item=[[1], [2], [], [3]]).rename_columns(["y", "price", "shop", "label"])
    with pytest.raises(SchemaError, match="`label` has another meaning there; give the column another name"):
        write_shop(tmp_path / "d", table, None, {**COLUMNS, "categorical": ["shop", "label"]})


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ([0, 1, 2, 0], r"train/0\.parquet, row groups 0 to 1\): column `y` holds 2 in 1 of 4 rows"),
        ([0.0, 1, None, 0], "column `y` holds NaN or null"),
        ([0, 1, None, None], r"column `y` holds null \(or 127\) in 2 of 4 rows"),
        (pa.array([0, 1, None, 0], pa.uint8()), r"column `y` holds null \(or 127\)"),
        (["0", "1", "1", "0"], "column `y` holds string, but labels must be numbers"),
    ],
)
def test_labels_to_train_on_are_checked_where_batches_are_made(
    tmp_path: Path, label: Any, words: str
) -> None:
    data = write_shop(tmp_path / "d", shop(label))
    with pytest.raises(DataError, match=words):
        one_batch(data)


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        ({"label": [0, 1, 2, 0]}, r"test/0\.parquet, .*column `y` holds 2 in 1 of 4 rows"),
        ({"price": [1.0, 2, np.inf, 4]}, r"test/0\.parquet, .*column `price` holds infinity"),
        ({"price": [1.0, 2, 1e39, 4]}, r"test/0\.parquet, .*column `price` holds infinity"),
    ],
)
@pytest.mark.parametrize("vocabulary", [False, True])
def test_held_out_rows_are_looked_at_as_evaluation_will(
    tmp_path: Path, held_out: dict[str, Any], words: str, vocabulary: bool
) -> None:
    budget = Budget.detect(memory="100MB")
    # What is wrong with the training rows is found while they are trained on.
    good = write_shop(tmp_path / "good", shop([0, 2, 1, 0]), shop())
    check_held_out(good, build_vocabulary(good) if vocabulary else WORD_IDS, budget)
    bad = write_shop(tmp_path / "bad", shop(), shop(**held_out))
    with pytest.raises(DataError, match=words):
        check_held_out(bad, build_vocabulary(bad) if vocabulary else WORD_IDS, budget)


@pytest.mark.parametrize("gaps", ["train", "test", "numbers"])
def test_a_category_that_is_true_false_or_null_has_three_ids(tmp_path: Path, gaps: str) -> None:
    """As pandas and Spark write a flag that may be unknown. A null in held-out rows is the same as in training."""
    whole, missing = shop(item=[True, False, True, False]), shop(item=[True, False, None, True])
    if gaps == "numbers":
        missing = shop(item=pa.array([1, 0, None, 1], pa.int8()))
    tables = (missing, whole) if gaps == "train" else (whole, missing)
    data = write_shop(tmp_path / "d", *tables, {**COLUMNS, "dense": ["price"]})
    train, test = (one_batch(data, paths)["sparse"][:, 1].tolist() for paths in (data.train, data.test))
    assert train[:2] == test[:2]
    assert len({*train, *test}) == 3
    assert (train if gaps == "train" else test)[2] not in train[:2]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (pa.int64(), pa.uint16()),
        (pa.uint16(), pa.int64()),
        (pa.uint32(), pa.int32()),
        (pa.uint8(), pa.uint64()),
        (pa.int8(), pa.int64()),
        (pa.list_(pa.int64()), pa.list_(pa.uint16())),
    ],
)
def test_missing_ids_are_one_id_in_training_and_held_out_rows_of_other_types(
    tmp_path: Path, train: pa.DataType, test: pa.DataType
) -> None:
    ids: list[Any] = [3, None, 4, None]
    if pa.types.is_list(train):
        ids = [[one] for one in ids]
    tables = [shop(item=pa.array(ids, type_)) for type_ in (train, test)]
    data = write_shop(tmp_path / "d", *tables)
    rows = []
    for paths in (data.train, data.test):
        batch = one_batch(data, paths)
        rows.append((batch["item"].values if data.has_lists else batch["sparse"][:, 1]).tolist())
    assert rows[0] == rows[1]
    assert rows[0][1] == rows[0][3] not in (rows[0][0], rows[0][2])


def test_numbers_may_be_missing_where_they_are_held_out_as_another_type(tmp_path: Path) -> None:
    data = write_shop(tmp_path / "d", shop(), shop(price=pa.array([1, None, 3, None], pa.int32())))
    assert one_batch(data, data.test)["dense"].expm1().flatten().tolist() == pytest.approx([1, 0, 3, 0])


def test_moments_that_are_categories_may_be_missing(tmp_path: Path) -> None:
    moments = pa.array([11, None, 25, None], pa.timestamp("us"))
    ids = one_batch(write_shop(tmp_path / "d", shop(item=moments)))["sparse"][:, 1].tolist()
    assert ids[1] == ids[3] not in (ids[0], ids[2])


UNUSED = {
    "struct": [{"a": 1}] * 4,
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([1, 2, 3, 4]).cast(pa.decimal128(21, 2)),
    "nested": [[[1]]] * 4,
    "nothing": pa.nulls(4),
}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("unused", UNUSED)
def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path: Path, unused: str, plain: bool) -> None:
    with_more, other = shop(meta=UNUSED[unused]), shop(meta=[1, 2, 3, 4])
    if plain:
        for day, table in enumerate((with_more, shop(), other)):
            pq.write_table(table, tmp_path / f"{day}.parquet")
        described = {"schema_version": 1, "columns": COLUMNS}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
        data = find_click_data(str(tmp_path))
    else:
        data = write_shop(tmp_path / "d", with_more, other)
    assert data.schema.names == ["y", "price", "shop", "item"]
    for paths in (data.train[:1], data.test):
        assert one_batch(data, paths)["sparse"].shape == (4, 2)


@pytest.mark.parametrize("lacking", ["y", "item"])
def test_a_pattern_does_not_stand_for_a_column_that_is_missing(tmp_path: Path, lacking: str) -> None:
    table = shop().rename_columns([name.replace(lacking, f"{lacking}1") for name in shop().column_names])
    columns = json.loads(json.dumps(COLUMNS).replace(f'"{lacking}"', f'"{lacking}*"'))
    with pytest.raises(SchemaError, match=rf"lacks the columns {lacking}\*, which .*dataset\.json names"):
        write_shop(tmp_path / "d", table, None, columns)


def test_held_out_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="test lacks the columns y, which are trained on; write them"):
        write_shop(tmp_path / "d", shop(), shop().drop_columns("y"))


@pytest.mark.parametrize(
    ("column", "held_out", "words"),
    [
        ("item", ["7", "8", "9", "7"], "`item` holds text, but whole numbers in .*train; write both alike"),
        ("item", [7.0, 8.0, None, 7.0], "`item` holds floats, but whole numbers in"),
        ("item", [[7], [8], [], [7]], "`item` holds lists of whole numbers, but whole numbers in"),
        ("shop", [1, 2, 3, 1], "`shop` holds whole numbers, but text in"),
        ("price", ["1", "2", "3", "4"], "`price` holds text, but floats in"),
    ],
)
def test_held_out_features_of_another_kind_than_training_s_are_refused(
    tmp_path: Path, column: str, held_out: Any, words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        write_shop(tmp_path / "d", shop(), shop(**{column: held_out}))


def test_labels_that_are_true_false_or_null_are_refused_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"`y` holds null in 1 of 4 rows, but labels are 0 or 1; leave those"
    ):
        write_shop(tmp_path / "d", shop([True, None, False, True]), None)


@pytest.mark.parametrize(
    ("prices", "kind"),
    [
        (["1", "2", "3", "4"], "text"),
        ([[1.0], [], [2.0], [3.0, 4.0]], "lists of floats"),
        # Of nanoseconds since 1970 the logarithm is nearly the same in all rows, and large.
        (pa.array([1, 2, 3, 4], pa.timestamp("us")), r"timestamp\[us\]"),
    ],
)
def test_dense_columns_that_are_no_numbers_are_refused_at_once(
    tmp_path: Path, prices: Any, kind: str
) -> None:
    with pytest.raises(
        SchemaError, match=f"column `price` holds {kind}, but dense columns hold a number a row"
    ):
        write_shop(tmp_path / "d", shop(price=prices), None)


@pytest.mark.parametrize(
    ("ids", "kind"), [([7.0, 8.0, None, 7.0], "floats"), ([[7.0], [8.0], [], [7.0]], "lists of floats")]
)
def test_ids_that_are_floats_are_refused_at_once(tmp_path: Path, ids: Any, kind: str) -> None:
    with pytest.raises(SchemaError, match=f"column `item` holds {kind}, but ids are whole numbers or text"):
        write_shop(tmp_path / "d", shop(item=ids), None)


def test_held_out_features_need_not_be_of_the_very_type_that_is_trained_on(tmp_path: Path) -> None:
    text = pa.array(["a", "b", None, "a"])
    held_out = shop(price=[1, 2, 3, 4], shop=text.dictionary_encode(), item=pa.array([7] * 4, pa.int8()))
    data = write_shop(tmp_path / "d", shop(), held_out)
    assert one_batch(data, data.test)["sparse"][:, 0].equal(one_batch(data)["sparse"][:, 0])


def test_held_out_features_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="test lacks the columns item, which are trained on"):
        write_shop(tmp_path / "d", shop(), shop().drop_columns("item"))


def test_missing_whole_numbers_count_as_0(tmp_path: Path) -> None:
    batch = one_batch(write_shop(tmp_path / "d", shop(price=pa.array([1, 2, None, 4], pa.int32()))))
    assert batch["dense"][2].item() == 0


@pytest.mark.parametrize("name", ["", "day_*.parquet", "day_0.parquet"])
def test_plain_files_may_have_a_description_beside_them(tmp_path: Path, name: str) -> None:
    for day in range(2):
        pq.write_table(shop(), tmp_path / f"day_{day}.parquet")
    described = {"schema_version": 1, "columns": COLUMNS, "cardinalities": {"shop": 3, "item": 4}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    data = find_click_data(str(tmp_path / name))
    assert data.columns.all == ["y", "price", "shop", "item"]
    assert data.cardinalities == (3, 4)
    assert len(data.test) == (0 if name == "day_0.parquet" else 1)


def test_columns_that_the_description_names_and_the_files_lack_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"lacks the columns x, which .*dataset\.json names; mend it"):
        write_shop(tmp_path / "d", shop(), None, {**COLUMNS, "dense": ["x"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": {"label": "y", "dense": []}}, r"dataset\.json has no `columns\.categorical`; write "),
        ({"columns": {"categorical": ["shop"]}}, r"has no `columns\.label`, `columns\.dense`"),
        ({"columns": ["y", "shop"]}, r"has `columns` \['y', 'shop'\]"),
        ({"columns": {**COLUMNS, "dense": "price"}}, r"has `columns\.dense` 'price'"),
        ({"columns": {**COLUMNS, "label": 3}}, r"has `columns\.label` 3"),
        ({"columns": {**COLUMNS, "categorical": []}}, r"has no name in `columns\.categorical`"),
        ({"columns": {**COLUMNS, "dense": ["y"]}}, "names the column `y` twice"),
        ({"cardinalities": {"shop": 3}}, r"dataset\.json has no `cardinalities\.item`; write how many"),
        ({"cardinalities": {"shop": 3, "item": "4"}}, r"has `cardinalities\.item` '4'"),
        ({"cardinalities": [3, 4]}, r"has `cardinalities` \[3, 4\]"),
    ],
)
def test_a_description_that_says_too_little_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        write_shop(tmp_path / "d", shop(), **change)
