"""`bottleneck` and `thresholds`: a step at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intune.agents.base import Agent
from intune.agents.bottleneck import Bottleneck
from intune.agents.thresholds import Thresholds, utilisation
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]
Play = Callable[[Agent, Jobs, int], list[Measurement]]


def test_bottleneck_adds_to_the_stage_that_would_make_least(measurement: Measured) -> None:
    # The second makes 2 / 1.5 ms, the third 2 / 1.9 ms, though it has been at work less of the time.
    proposal = Bottleneck().propose(
        measurement(busy=[1.0, 1.5, 1.9], rate=1000.0, present=[[True, True, True]])
    )
    np.testing.assert_array_equal(proposal.slots, [[2, 2, 3]])
    assert "stage 2 is the slowest" in proposal.explain(0)


def test_bottleneck_leaves_a_trainer_alone_that_does_not_wait(measurement: Measured) -> None:
    proposal = Bottleneck().propose(measurement(waiting=0.0))
    np.testing.assert_array_equal(proposal.slots, [[2, 2, 2]])


def test_bottleneck_stops_at_the_limit(measurement: Measured) -> None:
    proposal = Bottleneck(step=5).propose(measurement(slot_limit=8))
    assert proposal.slots.sum() == 8
    full = Bottleneck().propose(measurement(slot_limit=6))
    assert full.slots.sum() == 6
    assert "no slot is left" in full.explain(0)


def test_bottleneck_evens_stages_out(play: Play) -> None:
    jobs = Jobs.of(stages=3, cpu=np.array([[1.0, 3.0, 2.0]]) * 1e-4, cpus=64.0, block_rows=100.0, memory=1e12)
    seen = play(Bottleneck(), jobs, 21)
    np.testing.assert_allclose(seen[-1].slots, [[4, 12, 8]], atol=1.0)


def test_utilisation_counts_running_and_waiting_tasks(measurement: Measured) -> None:
    measured = measurement(
        busy=[1.0, 2.0, 0.5], queue_fill=[1.0, 0.25, 0.0], blocked=[0.5, 0.0, 0.0], starved=[0.0, 0.0, 0.75]
    )
    np.testing.assert_allclose(utilisation(measured), [[0.5 + 0.5, 1.0 + 1.0, 0.25 + 0.25]])


def test_thresholds_follow_rays_rule(measurement: Measured) -> None:
    # Utilisations 1, 2 and 0.5: as it is, ceil(20 (2 / 1.75 - 1)) = 3 more, one less.
    measured = measurement(
        slots=[[2.0, 20.0, 2.0]],
        busy=[1.0, 20.0, 0.5],
        queue_fill=[1.0, 0.25, 0.0],
        blocked=[0.5, 0.0, 0.0],
        slot_limit=99,
    )
    proposal = Thresholds().propose(measured)
    np.testing.assert_array_equal(proposal.slots, [[2, 23, 1]])
    assert proposal.explain(0) == "stage 1 +3, stage 2 -1"
    np.testing.assert_array_equal(Thresholds(most=1).propose(measured).slots, [[2, 21, 1]])


def test_thresholds_keep_to_the_limit_and_to_one_slot(measurement: Measured) -> None:
    full = Thresholds().propose(measurement(queue_fill=1.0, slot_limit=7))
    np.testing.assert_array_equal(full.slots, [[3, 2, 2]])
    idle = Thresholds().propose(measurement(slots=1.0, busy=0.1, queue_fill=0.0, blocked=0.9))
    np.testing.assert_array_equal(idle.slots, [[1, 1, 1]])
    assert "have one" in idle.explain(0)
    crowded = Thresholds().propose(measurement(queue_fill=1.0, slot_limit=6))
    np.testing.assert_array_equal(crowded.slots, [[2, 2, 2]])
    assert "no slot is left" in crowded.explain(0)
    between = Thresholds().propose(measurement(busy=1.0, queue_fill=0.25, blocked=0.0))
    assert between.explain(0) == "keep: every stage's utilisation lies between the thresholds"


@pytest.mark.parametrize("options", [{"up": 0.4}, {"down": -0.1}, {"up": 2.5}, {"most": 0}])
def test_thresholds_in_disorder_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Thresholds(**options)


@pytest.mark.parametrize("options", [{"step": 0}, {"enough": 2.0}])
def test_bottleneck_refuses_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Bottleneck(**options)  # type: ignore[arg-type]
