"""`static`, `shared` and `even`: agents that choose once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intune.agents.base import Agent
from intune.agents.even import Even
from intune.agents.shared import Shared
from intune.agents.static import Static
from intune.envs.measurement import Measurement
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]
STAGES = ("load", "batch", "transform")


def test_static_gives_one_slot_a_stage(measurement: Measured) -> None:
    decision = Static().decide(measurement(slots=4.0, busy=1.0), STAGES)
    assert decision.allocation == Allocation.per_stage(dict.fromkeys(STAGES, 1))
    assert "one slot a stage" in decision.reason


def test_static_gives_what_was_given_in_order_and_one_to_the_rest(measurement: Measured) -> None:
    proposal = Static(slots=[5, 2]).propose(measurement(jobs=2))
    np.testing.assert_array_equal(proposal.slots, [[5, 2, 1]] * 2)


def test_static_by_name(measurement: Measured) -> None:
    decision = Static(slots={"transform": 7}).decide(measurement(), STAGES)
    assert decision.allocation == Allocation.per_stage({"load": 1, "batch": 1, "transform": 7})


def test_static_by_name_tells_a_stage_that_is_not_there(measurement: Measured) -> None:
    with pytest.raises(ConfigError, match="did you mean 'transform'"):
        Static(slots={"transfrom": 7}).decide(measurement(), STAGES)


@pytest.mark.parametrize("slots", [[0], [1.5], {"load": -1}, [True]])
def test_static_refuses_numbers_that_are_no_slots(slots: object) -> None:
    with pytest.raises(ConfigError, match="whole numbers"):
        Static(slots=slots)  # type: ignore[arg-type]


def test_static_changes_nothing_that_is_so_already(measurement: Measured) -> None:
    assert Static(slots=[2, 2, 2]).decide(measurement(), STAGES).allocation is None


def test_shared_pools_as_many_slots_as_cpus(measurement: Measured) -> None:
    agent = Shared()
    agent.start(1, 3)
    decision = agent.decide(measurement(cpus=16), STAGES)
    assert decision.allocation == Allocation.shared(16)


@pytest.mark.parametrize(("agent", "follows"), [(Shared(), False), (Shared(follow=True), True)])
def test_shared_follows_a_resize_only_if_asked(agent: Agent, follows: bool, measurement: Measured) -> None:
    agent.start(1, 3)
    agent.propose(measurement(cpus=16))
    proposal = agent.propose(measurement(cpus=8))
    assert proposal.pool[0] == (8 if follows else 16)


def test_even_spreads_the_cpus(measurement: Measured) -> None:
    agent = Even()
    agent.start(2, 3)
    present = [[True, True, True], [True, True, False]]
    proposal = agent.propose(measurement(jobs=2, cpus=[17, 9], present=present))
    np.testing.assert_array_equal(proposal.slots, [[6, 6, 5], [5, 4, 0]])


def test_even_stays_with_the_cpus_of_the_start(measurement: Measured) -> None:
    agent = Even()
    agent.start(1, 3)
    agent.propose(measurement(cpus=12))
    np.testing.assert_array_equal(agent.propose(measurement(cpus=3)).slots, [[4, 4, 4]])


def test_even_begins_anew_with_a_job_that_was_killed(measurement: Measured) -> None:
    agent = Even()
    agent.start(1, 3)
    agent.propose(measurement(cpus=12))
    agent.propose(measurement(cpus=3, killed=True, delivered=0.0))
    np.testing.assert_array_equal(agent.propose(measurement(cpus=3)).slots, [[1, 1, 1]])


def test_forgetting_one_job_leaves_the_others(measurement: Measured) -> None:
    agent = Even()
    agent.start(2, 3)
    agent.propose(measurement(jobs=2, cpus=12))
    agent.forget(np.array([1]))
    np.testing.assert_array_equal(agent.propose(measurement(jobs=2, cpus=3)).slots, [[4, 4, 4], [1, 1, 1]])
