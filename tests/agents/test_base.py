"""What all agents share when they decide for the one live job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intune.agents import registry
from intune.agents.base import Agent, Proposal
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.static import Static
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator
from intune.pipelines.allocation import MOST_SLOTS, Allocation
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]
STAGES = ("load", "batch", "transform")


class Asks(Agent):
    """Wants what it is told to, and counts what it is shown."""

    name = "asks"

    def __init__(self, slots: float, pool: float = 0.0) -> None:
        self.slots, self.pool, self.seen = slots, pool, 0

    def propose(self, measured: Measurement) -> Proposal:
        self.seen += 1
        return Proposal(
            slots=np.full(measured.slots.shape, self.slots),
            pool=np.full(len(measured), self.pool),
            explain=lambda i: "it asks",
        )


def test_an_interval_that_says_nothing_is_shown_and_changes_nothing(measurement: Measured) -> None:
    agent = Asks(5.0)
    decision = agent.decide(measurement(delivered=0.0, killed=True), STAGES)
    assert agent.seen == 1
    assert decision.allocation is None
    assert decision.reason == "keep: the job ran out of memory and is starting again"


@pytest.mark.parametrize("name", registry.names())
def test_no_agent_minds_to_be_shown_a_job_that_died(measurement: Measured, name: str) -> None:
    if name == "oracle":
        pytest.skip("decides for simulated jobs only")
    agent = Guard(Referee(registry.make(name)))
    agent.start(1, 3)
    dead: tuple[dict[str, Any], ...] = (
        {"delivered": 0.0, "killed": True},
        {"delivered": np.nan, "busy": np.nan},
    )
    agent.decide(measurement(), STAGES)
    for values in dead:
        decision = agent.decide(measurement(**values), STAGES)
        assert decision.allocation is None
        assert decision.reason.startswith("keep: ")
    assert agent.decide(measurement(), STAGES).reason


def test_decisions_are_cut_to_the_slots_that_may_be_given_out(measurement: Measured) -> None:
    given = Asks(60.0).decide(measurement(slot_limit=16.0), STAGES).allocation
    assert given is not None
    assert given.total <= 16
    assert Asks(60.0, pool=60.0).decide(measurement(slot_limit=16.0), STAGES).allocation == Allocation.shared(
        16
    )


@pytest.mark.parametrize("pool", [0.0, 1e5])
def test_on_a_large_cluster_decisions_are_cut_to_what_an_allocation_may_have(
    measurement: Measured, pool: float
) -> None:
    """Else tuning would end with an error where a cluster has more than 512 CPUs."""
    measured = measurement(cpus=5000.0, slot_limit=40_000.0)
    given = Asks(9000.0, pool=pool).decide(measured, STAGES).allocation
    assert given is not None
    assert given == (
        Allocation.shared(MOST_SLOTS) if pool else Allocation.per_stage(dict.fromkeys(STAGES, MOST_SLOTS))
    )


def test_on_a_machine_that_shrank_as_many_slots_as_before_may_be_given(measurement: Measured) -> None:
    """Sixteen slots that wait for storage are worth as much with one processor as with two."""
    agent = Asks(16.0, pool=16.0)
    assert agent.decide(measurement(slots=16.0, pool=16.0, slot_limit=16.0), STAGES).allocation is None
    assert agent.decide(measurement(slots=16.0, pool=16.0, slot_limit=8.0), STAGES).allocation is None
    back = agent.decide(measurement(slots=8.0, pool=8.0, slot_limit=8.0), STAGES)
    assert back.allocation == Allocation.shared(16)


def test_what_a_person_gave_is_not_cut(measurement: Measured) -> None:
    for agent in (Static(slots=[9, 9, 9]), Guard(Referee(Static(slots=[9, 9, 9])))):
        agent.start(1, 3)
        given = agent.decide(measurement(slot_limit=16.0, memory_limit=1e12), STAGES).allocation
        assert given == Allocation.per_stage(dict.fromkeys(STAGES, 9))


def test_without_a_limit_to_memory_agents_decide_all_the_same() -> None:
    simulator = Simulator(Jobs.of(stages=3, cpu=1e-4, step=1e-9, cpus=16.0))
    agent = Guard(Referee(registry.make("dqn")))
    agent.start(1, 3)
    for _ in range(6):
        measured = simulator.run()
        proposal = agent.propose(measured)
        simulator.allocate(proposal.slots, proposal.pool)
    assert simulator.run().delivered[0] > 4e4


@pytest.mark.parametrize(
    ("proposal", "said"),
    [
        (None, "agent 'own' proposed NoneType; `propose` must return a Proposal"),
        (([2.0, 2.0], [0.0]), r"`slots` of shape \(2,\); here it must be \(1, 2\), jobs first"),
        (([[2.0, 2.0, 2.0]], [0.0]), r"`slots` of shape \(1, 3\)"),
        (([[2.0, 2.0]], 0.0), r"`pool` of shape \(\); here it must be \(1,\)"),
        (([[2.0, np.nan]], [0.0]), "slots that are not finite; where it knows nothing"),
        (([[2.0, 2.0]], [np.inf]), "slots that are not finite"),
    ],
)
@pytest.mark.parametrize("wrapped", [lambda agent: agent, Guard, Referee])
def test_a_proposal_by_which_no_slots_can_be_given_is_refused(
    measurement: Measured, proposal: Any, said: str, wrapped: Callable[[Agent], Agent]
) -> None:
    class Own(Agent):
        name = "own"

        def propose(self, measured: Measurement) -> Any:
            if proposal is None:
                return None
            slots, pool = (np.array(each) for each in proposal)
            return Proposal(slots=slots, pool=pool, explain=lambda i: "so")

    agent = wrapped(Own())
    agent.start(1, 2)
    with pytest.raises(ConfigError, match=said):
        agent.decide(measurement(stages=2), ["load", "batch"])


def test_slots_do_not_matter_where_a_pool_is_asked_for(measurement: Measured) -> None:
    class Own(Agent):
        name = "own"

        def propose(self, measured: Measurement) -> Proposal:
            return Proposal(slots=np.full((1, 2), np.nan), pool=np.array([3.0]), explain=lambda i: "three")

    assert Own().decide(measurement(stages=2), ["load", "batch"]).allocation == Allocation.shared(3)


class Proposes(Agent):
    """Proposes what it is told to."""

    name = "own"

    def __init__(self, slots: Any = ((2.0, 2.0),), pool: Any = (0.0,), **others: Any) -> None:
        self.parts = {"slots": slots, "pool": pool, "explain": lambda i: "own", **others}

    def propose(self, measured: Measurement) -> Proposal:
        return Proposal(**self.parts)


@pytest.mark.parametrize("wrapped", [lambda agent: agent, Guard, Referee])
def test_lists_of_numbers_are_as_good_as_arrays(
    measurement: Measured, wrapped: Callable[[Agent], Agent]
) -> None:
    agent = wrapped(Proposes([[3, 2]], [0], rate=[5000]))
    agent.start(1, 2)
    decision = agent.decide(measurement(stages=2, memory_limit=1e12), ["load", "batch"])
    assert decision.allocation == Allocation.per_stage({"load": 3, "batch": 2})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"slots": [["a", "b"]]},
            "`slots`=.*must be a NumPy array of numbers, here of shape .1, 2., jobs first",
        ),
        ({"slots": [[2.0, None]]}, "`slots`=.*must be a NumPy array of numbers"),
        ({"slots": [[2.0], [1.0, 3.0]]}, "`slots`=.*must be a NumPy array of numbers"),
        ({"slots": [[2j, 2j]]}, "`slots`=.*must be a NumPy array of numbers"),
        ({"pool": None}, "`pool`=None; it must be a NumPy array of numbers, here of shape .1,., jobs first"),
        ({"rate": [1.0, 2.0]}, r"`rate` of shape \(2,\); here it must be \(1,\)"),
        ({"explain": "why"}, "`explain` of a proposal must be a function .* not 'why'"),
        ({"explain": lambda i: None}, "`explain` of a proposal must be .* but it returned None"),
    ],
)
@pytest.mark.parametrize("wrapped", [lambda agent: agent, Guard, Referee])
def test_a_proposal_of_odd_things_is_told_what_is_wanted(
    measurement: Measured, parts: dict[str, Any], said: str, wrapped: Callable[[Agent], Agent]
) -> None:
    agent = wrapped(Proposes(**parts))
    agent.start(1, 2)
    with pytest.raises(ConfigError, match=f"(?s)agent 'own'.*{said}"):
        agent.decide(measurement(stages=2), ["load", "batch"])


@pytest.mark.parametrize("wrapped", [lambda agent: agent, lambda agent: Guard(Referee(agent))])
@pytest.mark.parametrize("name", ["bottleneck", "proportional", "qlearning", "thresholds"])
def test_reasons_call_stages_by_their_names(
    measurement: Measured, name: str, wrapped: Callable[[Agent], Agent]
) -> None:
    agent = wrapped(registry.make(name))
    agent.start(1, 3)
    measured = measurement(busy=[1.0, 2.0, 0.5], queue_fill=[1.0, 1.0, 0.0], cpus=16.0, memory_limit=1e12)
    reason = agent.decide(measured, STAGES).reason
    assert "batch" in reason
    assert "stage 1" not in reason
