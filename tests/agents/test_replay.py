"""Replay memory: which rewards are folded together, what follows, and where an episode is cut off."""

from __future__ import annotations

import numpy as np
import pytest

from intune.agents.rehearsal import JOB_WIDTH, PER_CANDIDATE, PER_STAGE, STAGE_WIDTH, Rehearsal
from intune.agents.replay import Replay

GAMMA, JOBS, OPTIONS = 0.5, 2, 3


def seen(mark: float, stages: int = 2) -> Rehearsal:
    """Recognisable by `mark`: in the first feature of the job."""
    job = np.zeros((JOBS, JOB_WIDTH), dtype=np.float32)
    job[:, 0] = mark + np.array([0.0, 100.0])
    return Rehearsal(
        stage=np.ones((JOBS, stages, STAGE_WIDTH), dtype=np.float32),
        job=job,
        moves=np.ones((JOBS, OPTIONS, stages, PER_STAGE), dtype=np.float32),
        options=np.ones((JOBS, OPTIONS, PER_CANDIDATE), dtype=np.float32),
        present=np.ones((JOBS, stages), dtype=bool),
        allowed=np.array([[True, int(mark) % 2 == 0, True]] * JOBS),
    )


def filled(
    n_step: int, lengths: tuple[int, ...] = (4,), decisions: int = 100, stages: tuple[int, ...] = (2,)
) -> Replay:
    replay = Replay(decisions=decisions, jobs=JOBS, gamma=GAMMA, n_step=n_step)
    mark = 0
    for number, length in enumerate(lengths):
        wide = stages[number % len(stages)]
        for _ in range(length):
            replay.add(seen(mark, wide), np.array([mark % 3, 1]), np.array([1.0 + mark, 10.0]))
            mark += 1
        replay.end(seen(mark, wide))
        mark += 1
    return replay


@pytest.mark.parametrize("n_step", [1, 2, 3])
def test_rewards_are_folded_and_discounted(n_step: int) -> None:
    """Rewards of job 0 are 1, 2, 3, 4 after states 0, 1, 2, 3; state 4 is where the episode was cut off."""
    batch = filled(n_step).sample(200, np.random.default_rng(0))
    begins = batch.state[1][:, 0].numpy()
    assert set(begins.tolist()) == {0, 1, 2, 3, 100, 101, 102, 103}
    for row, begin in enumerate(begins):
        if begin >= 100:
            continue
        step = int(begin)
        ahead = min(n_step, 4 - step)
        wanted = sum(GAMMA**k * (1.0 + step + k) for k in range(ahead))
        assert batch.reward[row] == pytest.approx(wanted)
        # Cut off is not ended: what stands at the cut is still worth something, so many steps ahead.
        assert batch.discount[row] == pytest.approx(GAMMA**ahead)
        assert batch.following[1][row, 0] == step + ahead
        assert batch.action[row] == step % 3
        assert batch.allowed[row].tolist() == [True, (step + ahead) % 2 == 0, True]


def test_transitions_never_cross_episodes() -> None:
    batch = filled(3, (2, 2)).sample(300, np.random.default_rng(1))
    for begin, following in zip(
        batch.state[1][:, 0].tolist(), batch.following[1][:, 0].tolist(), strict=True
    ):
        # Episodes are states 0 to 2 and 3 to 5.
        assert (begin % 100 < 3) == (following % 100 < 3)
        assert following % 100 in (2, 5)


def test_the_oldest_episodes_are_forgotten() -> None:
    replay = filled(1, (3, 3, 3), decisions=6)
    assert len(replay) == 6
    assert replay.sample(100, np.random.default_rng(0)).state[1][:, 0].min() >= 4


def test_an_episode_that_has_just_begun_can_be_learnt_from() -> None:
    replay = Replay(decisions=9, jobs=JOBS, gamma=GAMMA)
    for mark in range(3):
        replay.add(seen(mark), np.zeros(JOBS), np.full(JOBS, float(mark)))
    batch = replay.sample(60, np.random.default_rng(0))
    # What follows the last decision is not known yet.
    assert set((batch.state[1][:, 0] % 100).tolist()) == {0, 1}


def test_jobs_of_several_widths_stand_in_one_batch() -> None:
    batch = filled(1, (3, 3), stages=(2, 5)).sample(50, np.random.default_rng(0))
    assert batch.state[0].shape == (50, 5, STAGE_WIDTH)
    assert batch.state[2].shape == (50, OPTIONS, 5, PER_STAGE)
    assert set(batch.state[4].sum(dim=1).tolist()) == {2.0, 5.0}
    narrow = batch.state[4].sum(dim=1) == 2
    assert (batch.state[0][narrow][:, 2:] == 0).all()


def test_seeded_draws_are_equal() -> None:
    first, second = (filled(2).sample(20, np.random.default_rng(5)) for _ in range(2))
    assert first.action.tolist() == second.action.tolist()
    assert first.reward.tolist() == second.reward.tolist()
