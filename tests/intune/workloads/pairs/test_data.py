from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.errors import ConfigError, CorruptError, NotFoundError, SchemaError
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.pairs.data import RatingData, find_rating_data, grouped
from tests.intune.workloads.ratings_files import drawn, write_recbole


@pytest.fixture
def data(tmp_path: Path) -> RatingData:
    found = read_movielens(write_recbole(tmp_path / "files", drawn()))
    options = RatingsOptions(split=SplitOptions(name="global-time"))
    write_ratings(found, options, tmp_path / "data", kind="movielens")
    return find_rating_data(tmp_path / "data")


def rows(data: RatingData, split: str) -> list[tuple[int, int]]:
    table = data.table(f"ratings/{split}", ["user", "item"])
    return list(zip(table.column("user").to_pylist(), table.column("item").to_pylist(), strict=True))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_is_asked_for_is_known_from_training_and_what_was_seen_is_not_asked_for(
    data: RatingData, split: str
) -> None:
    held_out = data.held_out(split)  # type: ignore[arg-type]
    train = rows(data, "train")
    users, items = {user for user, _ in train}, {item for _, item in train}
    asked = [(user, item) for user, item in rows(data, split) if user in users and item in items]
    assert held_out.cold == len(rows(data, split)) - len(asked)
    earlier = train + (rows(data, "valid") if split == "test" else [])
    for place, user in enumerate(held_out.users):
        start, stop = held_out.targets.offsets[place], held_out.targets.offsets[place + 1]
        assert list(held_out.targets.values[start:stop]) == sorted(i for u, i in asked if u == user)
        start, stop = held_out.seen.offsets[place], held_out.seen.offsets[place + 1]
        assert list(held_out.seen.values[start:stop]) == sorted(i for u, i in earlier if u == user)
    assert len(held_out) == len({user for user, _ in asked})
    assert set(np.flatnonzero(held_out.candidates)) == items


def test_training_pairs_counts_and_lists_agree(data: RatingData) -> None:
    user, item = data.train_pairs
    np.testing.assert_array_equal(data.train_counts, np.bincount(item, minlength=data.items))
    assert int(data.train_seen.offsets[-1]) == len(user)
    assert len(data.train_seen) == data.users


def test_lists_are_grouped_by_row_sorted_and_may_be_empty() -> None:
    lists = grouped(np.array([2, 0, 2, 2]), np.array([5, 1, 9, 3]), rows=4)
    np.testing.assert_array_equal(lists.offsets, [0, 1, 1, 4, 4])
    np.testing.assert_array_equal(lists.values, [1, 3, 5, 9])


def test_a_pipeline_reads_any_of_the_tables(data: RatingData) -> None:
    with data.pipeline("ratings/train", ["user", "item"]).batch(7).loader(executor="threads") as loader:
        read = [
            pair
            for batch in loader
            for pair in zip(batch["user"].tolist(), batch["item"].tolist(), strict=True)
        ]
    assert read == rows(data, "train")


def test_another_kind_of_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no dataset\.json"):
        find_rating_data(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 1, "kind": "criteo"}))
    with pytest.raises(SchemaError, match="of kind 'criteo', but interactions are needed"):
        find_rating_data(tmp_path)


def test_tables_that_are_missing_broken_or_hold_strange_ids_are_refused(data: RatingData) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        data.table("nothing")
    with pytest.raises(ConfigError, match="holds nothing out"):
        data.held_out("train")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="lacks the columns price"):
        data.table("items", ["price"])
    path = data.folder / "ratings/train/part-00000.parquet"
    pq.write_table(pa.table({"user": [0, 99], "item": [0, 1]}), path)
    with pytest.raises(SchemaError, match=r"has user ids from 0 to 99, but dataset\.json says there are 12"):
        _ = data.train_pairs
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptError, match="cannot be read"):
        data.table("ratings/train")


def write_pairs(data: RatingData, split: str, pairs: list[tuple[int, int]]) -> None:
    user, item = np.array(pairs, dtype=np.int64).T
    for file in (data.folder / "ratings" / split).iterdir():
        file.unlink()
    pq.write_table(pa.table({"user": user, "item": item}), data.folder / "ratings" / split / "part.parquet")


def test_repeated_interactions_are_asked_for_once_and_only_where_they_are_new(data: RatingData) -> None:
    write_pairs(data, "train", [(0, 1), (0, 1), (0, 2), (1, 1), (1, 3)])
    write_pairs(data, "valid", [(0, 3), (0, 3), (0, 1), (1, 1), (1, 19)])
    write_pairs(data, "test", [(0, 3), (1, 2), (1, 2)])
    assert [ids.tolist() for ids in data.train_edges] == [[0, 0, 1, 1], [1, 2, 1, 3]]
    assert data.train_counts[:4].tolist() == [0, 3, 1, 1]
    assert data.train_seen.values.tolist() == [1, 2, 1, 3]
    valid, test = data.held_out("valid"), data.held_out("test")
    assert (valid.users.tolist(), valid.targets.values.tolist()) == ([0], [3])
    assert (valid.cold, valid.repeated) == (1, 3)
    assert (test.users.tolist(), test.targets.values.tolist()) == ([1], [2])
    assert (test.cold, test.repeated) == (0, 2)
    write_pairs(data, "test", [(0, 1), (0, 3)])
    with pytest.raises(SchemaError, match="no test interaction with an item that is new to its user"):
        data.held_out("test")


def test_rows_are_counted_and_all_parts_read_together(data: RatingData) -> None:
    parts = {split: rows(data, split) for split in ("train", "valid", "test")}
    for split, found in parts.items():
        assert data.rows(f"ratings/{split}") == len(found)
    table = data.all_ratings(["user", "item"])
    together = zip(table.column("user").to_pylist(), table.column("item").to_pylist(), strict=True)
    assert sorted(together) == sorted(pair for found in parts.values() for pair in found)
    with pytest.raises(NotFoundError, match="no-such-table does not exist"):
        data.rows("no-such-table")
    with pytest.raises(SchemaError, match="lacks the columns stars"):
        data.all_ratings(["stars"])


def test_a_table_is_read_piece_by_piece(data: RatingData, tmp_path: Path) -> None:
    pieces = list(data.batches("ratings/train", ["item"]))
    assert sum(len(piece) for piece in pieces) == len(data.train_pairs[0])
    with pytest.raises(NotFoundError, match="does not exist"):
        list(data.batches("ratings/none", ["item"]))
    (data.folder / "broken").mkdir()
    (data.folder / "broken" / "part.parquet").write_bytes(b"x")
    with pytest.raises(CorruptError, match="cannot be read"):
        list(data.batches("broken", ["item"]))
