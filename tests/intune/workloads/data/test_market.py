"""The simulated market: what is written is what was drawn, trends are known and shared, a seed decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intune.pipelines.errors import ConfigError, DataError
from intune.workloads.data.interactions import CleaningOptions, clean
from intune.workloads.data.market import MarketOptions, expected_velocity, simulate, write_market
from intune.workloads.trends.data import find_trend_data

SMALL = MarketOptions(users=40, items=20, audiences=4, steps=24, season=6, volume=5.0)


def test_the_series_written_are_what_was_drawn(tmp_path: Path) -> None:
    found = simulate(SMALL)
    write_market(SMALL, tmp_path / "m")
    data = find_trend_data(tmp_path / "m")
    step = (found.timestamp - found.timestamp.min()) // (7 * 86_400)
    counts = np.zeros((20, 24), dtype=np.int64)
    np.add.at(counts, (found.item, step), 1)
    np.testing.assert_array_equal(data.velocity, counts[:, :-1])


def test_counts_are_poisson_about_the_expected_velocity() -> None:
    options = replace(SMALL, volume=100.0, users=500)
    found = simulate(options)
    expected = np.asarray(found.items.column("expected_velocity").to_pylist())
    step = (found.timestamp - found.timestamp.min()) // (7 * 86_400)
    counts = np.zeros(expected.shape)
    np.add.at(counts, (found.item, step), 1)
    assert ((counts - expected) ** 2 / expected).mean() == pytest.approx(1.0, abs=0.2)


def test_items_of_one_audience_have_one_trend() -> None:
    audience, expected = expected_velocity(SMALL, np.random.default_rng(0))
    shape = np.log(expected) - np.log(expected).mean(axis=1, keepdims=True)
    for group in range(4):
        members = shape[audience == group]
        np.testing.assert_allclose(members, np.broadcast_to(members[0], members.shape), atol=1e-9)
    assert np.abs(shape[audience == 0][0] - shape[audience == 1][0]).max() > 0.1


def test_without_shocks_the_season_comes_again() -> None:
    _, expected = expected_velocity(replace(SMALL, shock=0.0), np.random.default_rng(0))
    np.testing.assert_allclose(expected[:, :6], expected[:, 6:12])
    assert np.log(expected[:, :6]).std(axis=1) == pytest.approx(np.full(20, 0.6))


def test_loyal_interactions_come_from_the_items_audience() -> None:
    found = simulate(replace(SMALL, loyalty=1.0))
    users, items = (np.asarray(table.column("audience")) for table in (found.users, found.items))
    np.testing.assert_array_equal(users[found.user], items[found.item])


def test_the_seed_decides() -> None:
    first, again, other = simulate(SMALL), simulate(SMALL), simulate(replace(SMALL, seed=1))
    np.testing.assert_array_equal(first.timestamp, again.timestamp)
    np.testing.assert_array_equal(first.user, again.user)
    assert len(first) != len(other) or (first.user != other.user).any()


def test_repeated_interactions_count() -> None:
    found = simulate(replace(SMALL, volume=20.0))
    kept, left = clean(found, CleaningOptions(keep_repeated=True))
    assert len(kept) == len(found)
    assert left.repeated == 0
    assert clean(found, CleaningOptions())[1].repeated > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 1}, "`users`=.* must be a whole number, 2 or more"),
        ({"steps": 2}, "`steps`=.* must be a whole number, 3 or more"),
        ({"audiences": 241}, "`audiences`=241 leaves some"),
        ({"loyalty": 1.5}, "`loyalty` must be from 0 to 1"),
        ({"volume": 0.0}, "`volume` must be above 0"),
        ({"shock": -1.0}, "`shock` must be from 0"),
        ({"step_days": 0.0}, "`step_days` must be at least a second"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MarketOptions(**change)  # type: ignore[arg-type]


def test_a_market_where_nothing_happens_is_refused() -> None:
    with pytest.raises(DataError, match="no interaction in its first or last step"):
        simulate(MarketOptions(users=2, items=2, audiences=1, volume=1e-9))
