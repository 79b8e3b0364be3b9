from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.errors import ConfigError, SchemaError
from intune.workloads.clicks.data import build_vocabulary, find_click_data
from intune.workloads.data.description import read_description
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.rating_clicks import (
    AGES,
    FEATURES,
    RatingClicksOptions,
    clicks_of,
    write_rating_clicks,
)
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from tests.intune.workloads.ratings_files import drawn, write_recbole


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    found = read_movielens(write_recbole(tmp_path / "files", drawn(users=40)))
    write_ratings(found, RatingsOptions(), tmp_path / "ratings", kind="movielens")
    return tmp_path / "ratings"


def rows_of(folder: Path, split: str) -> list[dict[str, object]]:
    return pq.read_table(folder / split).to_pylist()  # type: ignore[no-any-return]


def test_every_rating_becomes_one_click_with_its_users_attributes(ratings: Path, tmp_path: Path) -> None:
    description = write_rating_clicks(ratings, RatingClicksOptions(), tmp_path / "clicks")
    assert description["rows"] == {"train": 320, "test": 80}
    users = pq.read_table(ratings / "users").to_pylist()
    items = pq.read_table(ratings / "items").to_pylist()
    ages = {21: 1, 24: 1, 25: 2, 34: 2, 35: 3, 44: 3, 45: 4, 49: 4, 50: 5, 55: 5, 56: 6, 60: 6}
    seen = []
    for row in rows_of(tmp_path / "clicks", "train") + rows_of(tmp_path / "clicks", "test"):
        assert list(row) == ["label", *FEATURES]
        user = users[row["user"]]  # type: ignore[call-overload]
        assert (row["gender"], row["zip_code"], row["occupation"]) == (
            user["gender"],
            user["zip_code"],
            user["occupation"],
        )
        assert row["age_group"] == sum(user["age"] >= first for first in AGES)
        assert row["age_group"] == ages.get(user["age"], row["age_group"])
        seen.append((int(user["user_id"]), int(items[row["movie"]]["item_id"]), row["label"]))  # type: ignore[call-overload]
    assert sorted(seen) == sorted((user, item, float(stars >= 3)) for user, item, stars, _ in drawn(users=40))


def test_what_held_out_sessions_begin_with_becomes_clicks_too(tmp_path: Path) -> None:
    found = read_movielens(write_recbole(tmp_path / "files", drawn(users=40)))
    options = RatingsOptions(split=SplitOptions(name="session-time"))
    write_ratings(found, options, tmp_path / "ratings", kind="movielens")
    description = write_rating_clicks(tmp_path / "ratings", RatingClicksOptions(), tmp_path / "clicks")
    assert sum(description["rows"].values()) == len(drawn(users=40))


def test_the_split_is_the_seeds_and_the_threshold_the_options(ratings: Path, tmp_path: Path) -> None:
    for name, options in {
        "a": RatingClicksOptions(),
        "b": RatingClicksOptions(),
        "c": RatingClicksOptions(seed=1),
        "d": RatingClicksOptions(like_at=6),
    }.items():
        write_rating_clicks(ratings, options, tmp_path / name)
    a, b, c, d = (rows_of(tmp_path / name, "test") for name in "abcd")
    assert a == b != c
    assert {row["label"] for row in d} == {0.0}


def test_a_folder_of_ratings_is_made_click_logs_of_once(ratings: Path) -> None:
    found = find_click_data(str(ratings))
    assert found.columns.dense == ()
    assert found.columns.sparse == FEATURES
    assert found.cardinalities == (20, 40, 1, 40, 1, 6)
    assert read_description(ratings / "clicks")["kind"] == "rating-clicks"
    before = (ratings / "clicks" / "train" / "part-00000.parquet").stat().st_mtime_ns
    assert find_click_data(str(ratings)).train == found.train
    assert (ratings / "clicks" / "train" / "part-00000.parquet").stat().st_mtime_ns == before


def test_runs_that_begin_together_make_them_together_and_one_that_was_killed_is_in_nobodys_way(
    ratings: Path,
) -> None:
    (ratings / ".clicks-killed" / "clicks").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(clicks_of, [ratings] * 4))
    assert found == [ratings / "clicks"] * 4
    assert len(rows_of(ratings / "clicks", "train")) == 320
    left = [path.name for path in ratings.iterdir() if path.name.startswith(".clicks")]
    assert left == [".clicks-killed"]


def test_a_vocabulary_has_the_training_rows_ids(ratings: Path) -> None:
    found = find_click_data(str(ratings))
    vocabulary = build_vocabulary(found)
    train = pq.read_table(ratings / "clicks" / "train")
    for name in FEATURES:
        assert set(vocabulary.entries[name].values.to_pylist()) == set(train[name].to_pylist())


def test_users_of_whom_nothing_is_known_are_refused(ratings: Path, tmp_path: Path) -> None:
    users = pq.read_table(ratings / "users")
    (ratings / "users" / "part-00000.parquet").unlink()
    pq.write_table(pa.table({"user_id": users["user_id"]}), ratings / "users" / "part-00000.parquet")
    with pytest.raises(SchemaError, match="has no age, gender, occupation, zip_code"):
        write_rating_clicks(ratings, RatingClicksOptions(), tmp_path / "clicks")


@pytest.mark.parametrize(
    ("changes", "words"), [({"test_share": 1.0}, "`test_share`"), ({"seed": -1}, "`seed`")]
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RatingClicksOptions(**changes)  # type: ignore[arg-type]
