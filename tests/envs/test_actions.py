from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.envs import spaces
from intune.envs.actions import KEEP, MOVES, feasible, moved
from intune.pipelines.errors import ConfigError
from tests.envs.generated import seeds

few = settings(max_examples=25)


def case(seed: int) -> tuple[np.ndarray, ...]:
    """Which stages there are, slots in force, slots wanted, the limit: of 40 jobs."""
    rng = np.random.default_rng(seed)
    present = np.arange(7) < rng.integers(1, 8, (40, 1))
    slots = rng.integers(1, 40, present.shape) * present
    wanted = rng.integers(-10, 60, present.shape).astype(float)
    limit = np.maximum(present.sum(axis=1), rng.integers(1, 200, 40))
    return present, slots, wanted, limit


@few
@given(seeds)
def test_what_is_given_is_whole_at_least_one_and_never_above_the_limit(seed: int) -> None:
    present, slots, wanted, limit = case(seed)
    slots_given = feasible(present, slots, wanted, limit)
    assert (slots_given == np.rint(slots_given)).all()
    assert (slots_given[present] >= 1).all()
    assert not slots_given[~present].any()
    assert (slots_given.sum(axis=1) <= limit).all()


@few
@given(seeds)
def test_what_is_feasible_is_given_as_it_is(seed: int) -> None:
    present, slots, wanted, limit = case(seed)
    slots_given = feasible(present, slots, wanted, limit)
    np.testing.assert_array_equal(feasible(present, slots, slots_given, limit), slots_given)
    clean = np.maximum(wanted, 1) * present
    fits = clean.sum(axis=1) <= limit
    np.testing.assert_array_equal(slots_given[fits], clean[fits])


@few
@given(seeds)
def test_only_raises_are_cut_while_what_is_in_force_fits(seed: int) -> None:
    present, slots, wanted, limit = case(seed)
    fits = slots.sum(axis=1) <= limit
    slots_given = feasible(present, slots, wanted, limit)[fits]
    want, have = np.maximum(wanted, 1)[fits] * present[fits], slots[fits]
    np.testing.assert_array_equal(slots_given[want <= have], want[want <= have])
    assert (slots_given[want > have] >= have[want > have]).all()
    assert (slots_given <= want).all()


def test_raises_are_cut_by_the_same_share() -> None:
    slots_given = feasible(np.ones((1, 3), dtype=bool), np.array([[2.0, 2, 2]]), [[8, 5, 1]], [10])
    # 7 may be added to the 5 that are kept, or rather 5: of 6 and 3 wanted that is 5/9 each, rounded down.
    assert slots_given.tolist() == [[2 + 3, 2 + 1, 1]]


def test_a_machine_that_shrank_takes_slots_back_in_proportion() -> None:
    slots_given = feasible(np.ones((1, 2), dtype=bool), np.array([[21.0, 11.0]]), [[21, 11]], [17])
    assert slots_given.tolist() == [[11.0, 6.0]]


@few
@given(seeds)
def test_jobs_do_not_influence_each_other(seed: int) -> None:
    present, slots, wanted, limit = case(seed)
    together = feasible(present, slots, wanted, limit)
    for at in range(0, 40, 7):
        one = slice(at, at + 1)
        np.testing.assert_array_equal(
            feasible(present[one], slots[one], wanted[one], limit[one]), together[one]
        )


def test_moves_are_made_from_what_is_in_force() -> None:
    present = np.array([[True, True, True, False]])
    slots = np.array([[3.0, 3.0, 3.0, 0.0]])
    after = moved(present, slots, np.array([[0, 1, 4, 4]]), [100])
    assert after.tolist() == [[1, 2, 8, 0]]
    kept = moved(present, slots, np.full((1, 4), KEEP), [100])
    np.testing.assert_array_equal(kept, slots)


@few
@given(seeds)
def test_masks_allow_exactly_the_moves_that_are_made_in_full(seed: int) -> None:
    present, slots, _, limit = case(seed)
    fits = slots.sum(axis=1) <= limit
    masks = spaces.action_masks(present, slots, limit)
    for stage in range(present.shape[1]):
        for index, move in enumerate(MOVES):
            choice = np.full(present.shape, KEEP)
            choice[:, stage] = index
            made = moved(present, slots, choice, limit)
            in_full = (made[:, stage] == slots[:, stage] + move) & (
                made.sum(axis=1) == slots.sum(axis=1) + move
            )
            expected = np.where(present[:, stage], in_full, move == 0)
            np.testing.assert_array_equal(masks[fits, stage, index], expected[fits])


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([[1, 2]], ["action", "(1, 2)", "(1, 3)"]),
        ([[1, 2, 7]], ["7", "stage 2", "job 0", "0 to 4"]),
        ([[1, 2, -1]], ["-1", "0 to 4"]),
        ([[1.0, 2.5, 1.0]], ["whole"]),
        ([[1.0, np.nan, 1.0]], ["whole"]),
        ([[True, False, True]], ["whole"]),
    ],
)
def test_bad_moves_are_named(action: list[list[float]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        spaces.wanted_slots("moves", action, np.ones((1, 3)))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([[1.0, np.nan, 1.0]], ["NaN", "stage 1"]),
        ([["a", "b", "c"]], ["numbers"]),
        ([[1, 2, 3, 4]], ["(1, 4)"]),
    ],
)
def test_bad_slots_are_named(action: list[list[float]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        spaces.wanted_slots("absolute", action, np.ones((1, 3)))
    for word in words:
        assert word in str(error.value)


@given(st.booleans())
def test_absolute_actions_are_slots_and_perhaps_a_pool(pool: bool) -> None:
    action = [[1.0, 2.0, 5000.0, 7.0][: 3 + pool]]
    slots, pooled = spaces.wanted_slots("absolute", action, np.ones((1, 3)), pool=pool)
    assert slots.tolist() == [[1.0, 2.0, spaces.MOST_SLOTS]]
    assert (pooled.tolist() == [7.0]) if pool else (pooled is None)
