"""What is written to disk: every interaction once, nothing of the future in what is trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.errors import ConfigError, DataError
from intune.pipelines import Pipeline
from intune.pipelines.schema import Ragged
from intune.workloads.data.description import read_description
from intune.workloads.data.interactions import CleaningOptions
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import NAMES, SplitOptions
from intune.workloads.data.tables import SeriesOptions
from tests.intune.workloads.ratings_files import drawn, write_recbole

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(split: str = "user-time", **options: object) -> Path:
        found = read_movielens(write_recbole(tmp_path / "files", drawn()))
        out = tmp_path / split
        chosen = RatingsOptions(split=SplitOptions(name=split), **options)  # type: ignore[arg-type]
        write_ratings(found, chosen, out, kind="movielens")
        return out

    return write


def table(out: Path, name: str) -> pa.Table:
    return pq.read_table(out / name)


def triples(found: pa.Table) -> set[tuple[int, int, int]]:
    columns = (found.column(name).to_pylist() for name in ("user", "item", "timestamp"))
    return set(zip(*columns, strict=True))


@pytest.mark.parametrize("split", NAMES)
def test_every_interaction_is_in_exactly_one_part(make: Make, split: str) -> None:
    out = make(split)
    assert (out / "ratings" / "context").exists() == (split == "session-time")
    names = sorted(folder.name for folder in (out / "ratings").iterdir())
    parts = [triples(table(out, f"ratings/{part}")) for part in names]
    assert read_description(out)["rows"] == {name: len(part) for name, part in zip(names, parts, strict=True)}
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == 120
    users = table(out, "users").column("user_id").to_pylist()
    items = table(out, "items").column("item_id").to_pylist()
    assert {(users[user], items[item], moment) for part in parts for user, item, moment in part} == {
        (str(user), str(item), moment) for user, item, _, moment in drawn()
    }


@pytest.mark.parametrize("split", NAMES)
def test_rows_are_in_order_of_time(make: Make, split: str) -> None:
    out = make(split)
    for part in ("train", "valid", "test"):
        times = np.asarray(table(out, f"ratings/{part}").column("timestamp"))
        assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("split", NAMES)
def test_a_held_out_session_shows_only_what_came_before_its_targets(make: Make, split: str) -> None:
    out = make(split)
    asked = {part: triples(table(out, f"ratings/{part}")) for part in ("valid", "test")}
    for part in ("valid", "test"):
        found = table(out, f"sessions/{part}")
        assert found.num_rows > 0
        for row in found.to_pylist():
            mine = {(moment, item) for user, item, moment in asked[part] if user == row["user"]}
            assert sorted(item for _, item in mine) == sorted(row["targets"])
            assert row["items"]
            assert len(row["items"]) == len(row["timestamps"]) == len(row["ratings"])
            assert row["timestamps"] == sorted(row["timestamps"])
            assert row["timestamps"][-1] <= min(mine)[0]
            assert not set(row["items"]) & set(row["targets"])
            if part == "valid":
                later = {item for user, item, _ in asked["test"] if user == row["user"]}
                assert not later & set(row["items"])


@pytest.mark.parametrize("split", NAMES)
def test_the_graph_and_the_sessions_trained_on_are_those_of_the_training_ratings(
    make: Make, split: str
) -> None:
    out = make(split)
    train = table(out, "ratings/train")
    pairs = set(zip(train.column("user").to_pylist(), train.column("item").to_pylist(), strict=True))
    graph = table(out, "graph").to_pylist()
    assert {(row["user"], row["item"]) for row in graph} == pairs
    degrees_u, degrees_i = (np.bincount(np.asarray(train.column(name))) for name in ("user", "item"))
    for row in graph:
        assert row["weight"] == pytest.approx(1 / np.sqrt(degrees_u[row["user"]] * degrees_i[row["item"]]))
    sessions = table(out, "sessions/train").to_pylist()
    assert {(row["user"], item) for row in sessions for item in row["items"]} == pairs
    assert all(row["timestamps"] == sorted(row["timestamps"]) for row in sessions)


def test_whole_sessions_that_are_held_out_are_not_trained_on(make: Make) -> None:
    out = make("session-time")
    users = [
        set(table(out, f"sessions/{part}").column("user").to_pylist()) for part in ("train", "valid", "test")
    ]
    assert not users[0] & (users[1] | users[2])
    assert all(len(row["targets"]) == 1 for row in table(out, "sessions/test").to_pylist())


def test_what_held_out_sessions_begin_with_is_kept_beside_what_is_asked_for(make: Make) -> None:
    out = make("session-time")
    begun = triples(table(out, "ratings/context"))
    expected = set()
    for part in ("valid", "test"):
        for row in table(out, f"sessions/{part}").to_pylist():
            expected |= {(row["user"], *pair) for pair in zip(row["items"], row["timestamps"], strict=True)}
    assert begun == expected
    times = np.asarray(table(out, "ratings/context").column("timestamp"))
    assert (np.diff(times) >= 0).all()


def test_what_was_never_trained_on_is_marked_and_counted(make: Make) -> None:
    out = make("global-time")
    train = table(out, "ratings/train")
    users, items = (set(train.column(name).to_pylist()) for name in ("user", "item"))
    for part in ("valid", "test"):
        rows = table(out, f"ratings/{part}").to_pylist()
        assert [row["cold"] for row in rows] == [
            row["user"] not in users or row["item"] not in items for row in rows
        ]
        assert read_description(out)["cold"][part] == sum(row["cold"] for row in rows)
    counts = table(out, "items").column("train_count").to_pylist()
    np.testing.assert_array_equal(
        counts, np.bincount(np.asarray(train.column("item")), minlength=len(counts))
    )


def test_series_count_the_interactions_of_every_step(make: Make) -> None:
    out = make(series=SeriesOptions(step_days=10))
    described = read_description(out)["series"]
    rows = table(out, "series").to_pylist()
    assert {len(row["velocity"]) for row in rows} == {described["steps"]}
    expected = np.zeros((len(rows), described["steps"]), dtype=int)
    names = table(out, "items").column("item_id").to_pylist()
    for _, item, _, moment in drawn():
        expected[names.index(str(item)), (moment - described["start"]) // described["step_s"]] += 1
    np.testing.assert_array_equal([row["velocity"] for row in rows], expected)


def test_the_tables_are_read_by_a_pipeline_lists_included(make: Make) -> None:
    out = make()
    with Pipeline.from_parquet(out / "sessions/test").batch(5).loader(executor="threads") as loader:
        batches = list(loader)
    assert sum(len(batch["user"]) for batch in batches) == 12
    assert isinstance(batches[0]["targets"], Ragged)
    with (
        Pipeline.from_parquet(out / "items", fill={"year": -1}).batch(50).loader(executor="threads") as loader
    ):
        (batch,) = loader
    assert batch["text"][0].as_py() == "Film 1 (1981). Drama, Sci-Fi"


def test_the_description_tells_counts_and_options(make: Make) -> None:
    description = read_description(make(cleaning=CleaningOptions(core=2)))
    assert description["kind"] == "movielens"
    assert (description["users"], description["items"]) == (12, 20)
    assert sum(description["rows"].values()) == 120
    assert description["cleaning"] == {"min_rating": None, "core": 2, "keep_repeated": False}
    assert description["split"]["name"] == "user-time"


def test_nothing_is_left_behind_where_the_data_cannot_be_used(tmp_path: Path) -> None:
    found = read_movielens(write_recbole(tmp_path / "files", drawn(users=1)))
    with pytest.raises(DataError, match="1 user left"):
        write_ratings(found, RatingsOptions(), tmp_path / "out", kind="movielens")
    assert not (tmp_path / "out").exists()


def test_steps_too_short_for_memory_or_for_a_second_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="make steps longer"):
        make(series=SeriesOptions(step_days=1 / 86_400))
    with pytest.raises(ConfigError, match="`step_days` must be at least a second"):
        SeriesOptions(step_days=0)
