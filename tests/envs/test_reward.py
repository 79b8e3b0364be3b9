from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.reward import PAPER, Reward
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError


@pytest.fixture
def measured() -> Measurement:
    """Two jobs: 6 of 16 slots in use, delivering; and 2 of 8, out of memory."""
    jobs = Jobs.of(
        stages=[2, 1], jobs=2, cpu=1e-3, cpus=[[4], [2]], slot_bytes=[[1e9, 1e9], [9e9, 0.0]], memory=8e9
    )
    simulator = Simulator(jobs)
    simulator.allocate([[4, 2], [2, 0]])
    return simulator.run()


def test_the_papers_is_rate_times_free_memory(measured: Measurement) -> None:
    reward = PAPER(measured, moved=np.zeros(2))
    free = 1 - measured.memory_used[0] / 8e9
    assert 0 < free < 0.5
    assert reward.tolist() == pytest.approx([measured.delivered[0] * free, 0.0])


def test_the_rate_is_divided_by_the_reference(measured: Measurement) -> None:
    plain = Reward(memory=0.0, killed=0.0)
    reference = np.array([500.0, 1.0])
    np.testing.assert_allclose(
        plain(measured, moved=np.zeros(2), reference=reference), measured.delivered / reference
    )


def test_memory_weighs_by_its_exponent(measured: Measurement) -> None:
    free = 1 - measured.memory_used[0] / 8e9
    reward = Reward(memory=2.5, rate=3.0)(measured, moved=np.zeros(2))
    assert reward[0] == pytest.approx(3 * measured.delivered[0] * free**2.5)


def test_slots_and_moves_cost_their_share_of_what_may_be_given_out(measured: Measurement) -> None:
    base = Reward()(measured, moved=np.array([5.0, 3.0]))
    reward = Reward(slots=0.5, moving=0.25)(measured, moved=np.array([5.0, 3.0]))
    # The second job began again with one slot; 8 may be given out to it.
    np.testing.assert_allclose(base - reward, [0.5 * 6 / 16 + 0.25 * 5 / 16, 0.5 * 1 / 8 + 0.25 * 3 / 8])


def test_a_pool_counts_once() -> None:
    simulator = Simulator(Jobs.of(stages=3, cpu=1e-3, cpus=4))
    simulator.allocate(np.ones((1, 3)), np.array([8.0]))
    measured = simulator.run()
    given = Reward(rate=0.0, slots=1.0)(measured, moved=np.zeros(1))
    assert given[0] == pytest.approx(-8 / 16)


def test_running_out_of_memory_is_punished(measured: Measurement) -> None:
    assert measured.killed.tolist() == [False, True]
    difference = Reward(killed=7.0)(measured, moved=np.zeros(2)) - Reward(killed=0.0)(
        measured, moved=np.zeros(2)
    )
    assert difference.tolist() == [0.0, -7.0]


@pytest.mark.parametrize("name", ["rate", "memory", "slots", "moving", "killed"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, True, "1"])
def test_weights_must_be_numbers_of_zero_or_more(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Reward(**{name: value})
