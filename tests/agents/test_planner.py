"""The planner: near the best within a few decisions, keeps what is good, probes where nothing else is safe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intune.agents import registry
from intune.agents.base import Agent
from intune.agents.evaluate import Trial, evaluate
from intune.agents.outcomes import outcomes
from intune.agents.planner import Planner
from intune.envs.job_sources import GivenJobs
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.source import JobSource

Play = Callable[[Agent, Jobs, int], list[Measurement]]


def calm(count: int = 24) -> Jobs:
    rng = np.random.default_rng(2)
    return Jobs.of(
        stages=4, jobs=count, cpu=rng.lognormal(-9, 1, (count, 4)), wait=rng.lognormal(-10, 1.5, (count, 4)),
        slot_bytes=rng.lognormal(18, 1, (count, 4)), cpus=np.full((count, 1), 16.0), memory=3e11, base_bytes=1e9,
        block_rows=1000.0,
    )  # fmt: skip


def test_it_is_near_the_best_after_five_decisions() -> None:
    trace = evaluate({"planner": Planner}, GivenJobs(calm()), Trial(jobs=24, steps=12))["planner"]
    assert outcomes(trace).at_5.mean() > 0.9
    assert outcomes(trace).at_10.mean() > 0.93


def test_it_settles(play: Play) -> None:
    """Of jobs without chance, all stay with what they have sooner or later."""
    seen = play(Planner(), calm(8), 20)
    for late in seen[-4:]:
        np.testing.assert_array_equal(late.slots, seen[-1].slots)


def test_seeded_runs_are_equal_and_starting_anew_forgets(play: Play) -> None:
    agent = Planner()
    first = play(agent, calm(5), 8)
    again = play(agent, calm(5), 8)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.slots, other.slots)


def test_reasons_name_slots_and_rates(play: Play) -> None:
    agent, jobs = Planner(), calm(1)
    first = play(agent, jobs, 0)[-1]
    names = ["load", "batch", "transform", "transfer"]
    decision = agent.decide(first, names)
    assert decision.allocation is not None
    assert "make every stage sustain" in decision.reason
    late = play(agent, jobs, 15)[-1]
    decision = agent.decide(late, names)
    assert decision.allocation is None
    assert decision.reason.startswith("keep: the plan would bring")


def test_it_claims_no_more_to_spare_than_there_is(measurement: Callable[..., Measurement]) -> None:
    """Stages of 1 ms a row get two slots each where there are no more, and three for a trainer of 0.4 ms a row."""
    said = []
    for limit in (6.0, 60.0):
        agent = Planner()
        agent.start(1, 3)
        agent.name_stages(["load", "batch", "map"])
        alone = measurement(
            slots=1.0, busy=1.0, cpu=0.2, cpus_used=0.6, step=4e-4, memory_limit=1e15, slot_limit=limit
        )
        said.append(agent.propose(alone).explain(0))
    assert said[0].startswith("load 2, batch 2, map 2 make every stage sustain")
    assert said[0].endswith("with 0% to spare")
    assert said[1].startswith("load 3, batch 3, map 3 make every stage sustain 2,500 rows/s")
    assert int(said[1].removesuffix("% to spare").rpartition(" ")[2]) >= 8


def test_under_the_guard_no_tight_job_is_lost() -> None:
    source = JobSource(Scenario.load("memory-tight"), split="test", seed=7)
    trace = evaluate({"p": lambda: registry.make("planner+guard")}, source, Trial(jobs=64, steps=12))["p"]
    assert np.nansum(outcomes(trace).kills) == 0
    assert outcomes(trace).at_10.mean() > 0.6
