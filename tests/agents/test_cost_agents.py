"""`proportional`, `heuristic-adaptive` and `ds2`: all slots at once from measured cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intune.agents.base import Agent
from intune.agents.ds2 import DS2
from intune.agents.heuristic_adaptive import HeuristicAdaptive
from intune.agents.proportional import Proportional
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]
Play = Callable[[Agent, Jobs, int], list[Measurement]]


def test_proportional_follows_the_cost(measurement: Measured) -> None:
    agent = Proportional()
    agent.start(1, 3)
    proposal = agent.propose(measurement(busy=[1.0, 2.0, 1.0], cpus=16))
    np.testing.assert_array_equal(proposal.slots, [[4, 8, 4]])
    assert "stage 1 takes 50%" in proposal.explain(0)


def test_proportional_keeps_where_a_stage_made_nothing(measurement: Measured) -> None:
    proposal = Proportional().propose(measurement(rate=[1000.0, 0.0, 1000.0]))
    np.testing.assert_array_equal(proposal.slots, [[2, 2, 2]])


def test_the_heuristic_gives_waiting_stages_more_slots_than_cpus(measurement: Measured) -> None:
    # 16 CPUs at 4 processor seconds per 1,000 rows: 4,000 rows/s; the first waits three quarters of its time.
    agent = HeuristicAdaptive()
    agent.start(1, 3)
    proposal = agent.propose(measurement(slots=4.0, busy=[4.0, 2.0, 1.0], cpu=[1.0, 2.0, 1.0], cpus=16))
    np.testing.assert_array_equal(proposal.slots, [[16, 8, 4]])


def test_the_heuristic_is_redone_at_a_resize_only(measurement: Measured) -> None:
    agent = HeuristicAdaptive()
    agent.start(1, 3)
    first = agent.propose(measurement(cpus=12))
    np.testing.assert_array_equal(first.slots, [[4, 4, 4]])
    same = agent.propose(measurement(cpus=12, slots=4.0, busy=[4.0, 1.0, 1.0]))
    np.testing.assert_array_equal(same.slots, [[4, 4, 4]])
    assert same.explain(0).startswith("keep")
    resized = agent.propose(measurement(cpus=24, slots=4.0, busy=2.0, cpu=2.0))
    np.testing.assert_array_equal(resized.slots, [[8, 8, 8]])


def test_ds2_by_hand(measurement: Measured) -> None:
    # True rates of 500, 250 and 1,000 rows/s a slot; 14 processors allow 14 / 7 ms = 2,000 rows/s.
    agent = DS2()
    agent.start(1, 3)
    proposal = agent.propose(measurement(slots=4.0, busy=[2.0, 4.0, 1.0], cpu=[2.0, 4.0, 1.0], cpus=14))
    np.testing.assert_array_equal(proposal.slots, [[4, 8, 2]])
    assert "2,000 rows/s" in proposal.explain(0)


def test_ds2_aims_no_higher_than_the_trainer(measurement: Measured) -> None:
    proposal = DS2().propose(measurement(slots=4.0, busy=[2.0, 4.0, 1.0], cpus=14, step=1 / 1500))
    np.testing.assert_array_equal(proposal.slots, [[3, 6, 2]])


def test_ds2_gives_out_no_more_slots_than_there_are(measurement: Measured) -> None:
    proposal = DS2().propose(measurement(jobs=1, cpu=0.01, slot_limit=20.0))
    assert proposal.slots.sum() <= 20
    assert proposal.slots.sum() >= 18


def test_ds2_keeps_while_the_target_is_reached(measurement: Measured) -> None:
    measured = measurement(step=1 / 1000)
    proposal = DS2().propose(measured)
    np.testing.assert_array_equal(proposal.slots, measured.slots)
    assert "within reach" in proposal.explain(0)


def test_ds2_waits_out_its_warm_up(measurement: Measured) -> None:
    """In the first interval after a change the change is one interval old."""
    for intervals, waits in ((1, (False, True, True)), (2, (False, False, True)), (3, (False, False, False))):
        measured = measurement(since_change=5.0 * intervals)
        said = [DS2(warm_up=count).propose(measured).explain(0) for count in (0, 1, 2)]
        assert tuple(each.startswith("keep: the last change") for each in said) == waits


@pytest.mark.parametrize("options", [{"tolerance": 1.0}, {"warm_up": -1}])
def test_ds2_refuses_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DS2(**options)  # type: ignore[arg-type]


def test_ds2_reaches_the_best_rate_of_ideal_stages_in_one_step(play: Play) -> None:
    cost = np.array([[1.0, 4.0, 2.0, 0.5]]) * 1e-4
    jobs = Jobs.of(stages=4, cpu=cost, cpus=60.0, block_rows=100.0, memory=1e12)
    seen = play(DS2(), jobs, 1)
    best = 60.0 / cost.sum()
    assert seen[-1].delivered[0] == pytest.approx(best, rel=0.02)
