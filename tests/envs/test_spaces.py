from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from intune.envs import spaces
from intune.envs.actions import KEEP, MOVES, moved
from tests.envs.generated import seeds


def test_after_a_shrink_no_move_is_made_in_full_while_too_many_slots_are_left() -> None:
    both = np.ones((1, 2), dtype=bool)
    slots = np.array([[5.0, 5.0]])
    assert moved(both, slots, np.array([[1, KEEP]]), [4]).tolist() == [[1.0, 2.0]]
    assert spaces.action_masks(both, slots, [4]).tolist() == [[[False, False, True, False, False]] * 2]


def test_after_a_shrink_a_move_that_leaves_few_enough_is_made_in_full() -> None:
    masks = spaces.action_masks(np.ones((1, 2), dtype=bool), np.array([[9.0, 2.0]]), [10])
    assert masks.tolist() == [[[True, True, True, False, False], [False, True, True, False, False]]]


@settings(max_examples=50)
@given(seeds)
def test_masks_are_those_of_the_moves_made_in_full_whatever_is_in_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = np.arange(5) < rng.integers(1, 6, (30, 1))
    slots = (rng.integers(1, 12, present.shape) * present).astype(float)
    limit = np.maximum(present.sum(axis=1), rng.integers(1, 50, 30))
    masks = spaces.action_masks(present, slots, limit)
    for stage in range(5):
        for index, move in enumerate(MOVES):
            choice = np.full(present.shape, KEEP)
            choice[:, stage] = index
            asked = slots.copy()
            asked[:, stage] += move
            in_full = (moved(present, slots, choice, limit) == asked).all(axis=1) & present[:, stage]
            np.testing.assert_array_equal(masks[:, stage, index], in_full | (index == KEEP))
