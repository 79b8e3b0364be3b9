from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.errors import ConfigError, DataError
from intune.workloads.data.splits import CONTEXT, NAMES, TEST, TRAIN, VALID, SplitOptions, assign


def rows_of(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users with so many interactions each, times rising within each."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(counts)), counts)
    times = [np.sort(rng.integers(0, 1000, count)) for count in counts]
    return user, np.concatenate(times)


COUNTS = st.lists(st.integers(1, 12), min_size=6, max_size=12)


@pytest.mark.parametrize("name", ["user-time", "leave-one-out"])
@given(counts=COUNTS)
def test_within_a_user_training_comes_before_validation_before_test(name: str, counts: list[int]) -> None:
    user, times = rows_of([*counts, 3])
    parts = assign(user, times, SplitOptions(name=name, valid_share=0.2, test_share=0.2))  # type: ignore[arg-type]
    for one in np.unique(user):
        mine = parts[user == one]
        assert (np.diff(mine) >= 0).all()
        assert (mine == TRAIN).any()
        if len(mine) >= 3:
            assert set(mine) == {TRAIN, VALID, TEST}
        else:
            assert set(mine) == {TRAIN}


def test_leave_one_out_holds_out_exactly_two_of_each_user() -> None:
    parts = assign(*rows_of([3, 7, 2]), SplitOptions(name="leave-one-out"))
    np.testing.assert_array_equal(parts, [0, 1, 2, 0, 0, 0, 0, 0, 1, 2, 0, 0])


def test_shares_are_of_each_users_interactions() -> None:
    parts = assign(*rows_of([10, 20]), SplitOptions(valid_share=0.2, test_share=0.1))
    np.testing.assert_array_equal(parts[:10], [0] * 7 + [1] * 2 + [2])
    np.testing.assert_array_equal(np.bincount(parts[10:]), [14, 4, 2])


SHARES = st.tuples(st.floats(0.01, 0.98), st.floats(0.01, 0.98)).filter(lambda both: sum(both) < 0.99)


@pytest.mark.parametrize("name", ["user-time", "random"])
@given(counts=COUNTS, shares=SHARES)
def test_whatever_the_shares_each_part_has_something_of_a_user_of_three(
    name: str, counts: list[int], shares: tuple[float, float]
) -> None:
    user, times = rows_of([*counts, 3])
    options = SplitOptions(name=name, valid_share=shares[0], test_share=shares[1])  # type: ignore[arg-type]
    parts = assign(user, times, options)
    for one in np.unique(user):
        mine = parts[user == one]
        assert set(mine) == ({TRAIN, VALID, TEST} if len(mine) >= 3 else {TRAIN})


def test_one_moment_divides_all_users_and_a_second_is_never_cut() -> None:
    user = np.repeat(np.arange(10), 10)
    times = np.sort(np.random.default_rng(1).integers(0, 20, (10, 10)), axis=1).ravel()
    parts = assign(user, times, SplitOptions(name="global-time", valid_share=0.2, test_share=0.2))
    assert times[parts == TRAIN].max() < times[parts == VALID].min()
    assert times[parts == VALID].max() < times[parts == TEST].min()


def test_whole_sessions_are_held_out_by_their_end_and_only_their_last_item_is_asked_for() -> None:
    user = np.repeat(np.arange(10), 3)
    times = (np.arange(10)[::-1, None] * 10 + np.arange(3)).ravel()  # user 0 came last
    parts = assign(user, times, SplitOptions(name="session-time", valid_share=0.2, test_share=0.1))
    np.testing.assert_array_equal(parts[:3], [CONTEXT, CONTEXT, TEST])
    np.testing.assert_array_equal(parts[3:9], [CONTEXT, CONTEXT, VALID] * 2)
    assert (parts[9:] == TRAIN).all()


def test_random_holds_out_the_same_share_by_seed() -> None:
    user, times = rows_of([20] * 5)
    first, again, other = (assign(user, times, SplitOptions(name="random", seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for one in range(5):
        np.testing.assert_array_equal(np.bincount(first[user == one]), [16, 2, 2])


@pytest.mark.parametrize("name", NAMES)
def test_a_split_that_leaves_a_part_empty_says_so(name: str) -> None:
    with pytest.raises(DataError, match="leaves no interaction for"):
        assign(np.array([0, 1]), np.array([5, 5]), SplitOptions(name=name))  # type: ignore[arg-type]


def test_time_that_goes_backwards_is_refused() -> None:
    with pytest.raises(DataError, match="go backwards"):
        assign(np.array([0, 0, 1]), np.array([5, 4, 9]), SplitOptions())
    with pytest.raises(DataError, match="go backwards"):
        assign(np.array([1, 0]), np.array([1, 2]), SplitOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "both"}, "`split`='both' is unknown"),
        ({"valid_share": 0.0}, "`valid_share` must be above 0"),
        ({"test_share": 1.0}, "`test_share` must be above 0 and below 1"),
        ({"valid_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        ({"seed": -1}, "`seed` must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitOptions(**options)  # type: ignore[arg-type]
