from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.agents.base import Agent, Proposal
from intune.agents.ds2 import DS2
from intune.agents.evaluate import Trial, evaluate, play, reveal
from intune.agents.guard import Guard
from intune.agents.oracle import Oracle
from intune.agents.oracle_plan import plan
from intune.agents.outcomes import outcomes
from intune.agents.static import Static
from intune.agents.summary import summarise
from intune.envs.conditions import quiet
from intune.envs.job_sources import GivenJobs
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


def some_jobs(count: int = 40) -> Jobs:
    rng = np.random.default_rng(0)
    return Jobs.of(
        stages=4, jobs=count, cpu=rng.lognormal(-9, 1, (count, 4)), cpus=12.0, memory=1e12, noise=0.02,
        slot_bytes=1e8, block_rows=1000.0, interval=5.0, event_time=50.0 * np.ones((count, 1)),
        event_cpus=2.0 * np.ones((count, 1)),
    )  # fmt: skip


def test_the_oracle_gets_all_and_one_slot_a_stage_little() -> None:
    traces = evaluate({"oracle": Oracle, "static": Static}, GivenJobs(some_jobs()), Trial(jobs=40, steps=20))
    best, least = outcomes(traces["oracle"]), outcomes(traces["static"])
    assert best.whole.mean() == pytest.approx(1.0, abs=0.02)
    assert best.recovery.mean() == pytest.approx(1.0, abs=0.1)
    assert least.whole.mean() < 0.4
    assert traces["oracle"].resized.any(axis=1).all()


def test_chunks_do_not_matter() -> None:
    source = GivenJobs(some_jobs())
    whole, parts = (
        evaluate({"ds2": DS2}, source, Trial(jobs=23, steps=8, chunk=chunk))["ds2"] for chunk in (64, 7)
    )
    np.testing.assert_allclose(whole.rate, parts.rate)
    assert len(parts) == 23


def test_the_first_number_moves_the_window() -> None:
    source = GivenJobs(some_jobs())
    all_jobs = evaluate({"ds2": DS2}, source, Trial(jobs=10, steps=4))["ds2"]
    later = evaluate({"ds2": DS2}, source, Trial(jobs=4, steps=4, first=6))["ds2"]
    np.testing.assert_allclose(all_jobs.rate[6:], later.rate)


def test_progress_is_told_of_every_agent() -> None:
    seen: list[tuple[str, int]] = []
    evaluate(
        {"a": Static, "b": Static},
        GivenJobs(some_jobs()),
        Trial(jobs=10, steps=2, chunk=6),
        watch=lambda name, jobs: seen.append((name, jobs)),
    )
    assert seen == [("a", 6), ("b", 6), ("a", 4), ("b", 4)]


class Everything(Agent):
    """Gives every stage all CPUs: out of memory where that matters."""

    name = "everything"

    def start(self, jobs: int, stages: int) -> None:
        self.killed = 0

    def propose(self, measured: Measurement) -> Proposal:
        self.killed += int(measured.killed.sum())
        return Proposal(
            slots=measured.present * 12.0, pool=np.zeros(len(measured)), explain=lambda _: "everything"
        )


def test_running_out_of_memory_is_counted_and_costs_the_restart() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-4, cpus=12.0, memory=2e9, slot_bytes=2e8, block_rows=1e3, interval=5.0)
    agent = Everything()
    trace = play(agent, jobs, quiet(jobs, 31), plan(jobs, 31), restart_seconds=20.0)
    # Dies at once, stands for four intervals, and dies again in the first one it runs.
    np.testing.assert_array_equal(np.flatnonzero(trace.killed[0]), [0, 5, 10, 15, 20, 25])
    assert agent.killed == 6
    assert trace.memory[0].max() > 1.0
    assert outcomes(trace).whole[0] == pytest.approx(0.0, abs=1e-12)
    assert trace.slots[0, 0] == 2.0


def test_an_oracle_inside_a_guard_is_told_too() -> None:
    inside = Oracle()
    jobs = some_jobs(3)
    known = plan(jobs, 5)
    reveal(Guard(inside), known)
    assert inside._plan is known


def test_an_agent_of_ones_own_may_have_any_attributes_and_is_told_what_it_proposed_wrongly() -> None:
    class Own(Static):
        use = agent = "what an oracle and a guard call otherwise"

    assert len(evaluate({"own": Own}, GivenJobs(some_jobs()), Trial(jobs=2, steps=2))["own"]) == 2

    class Wrong(Own):
        name = "wrong"

        def propose(self, measured: Measurement) -> Any:
            return measured.slots

    with pytest.raises(ConfigError, match="agent 'wrong' proposed ndarray"):
        evaluate({"wrong": Wrong}, GivenJobs(some_jobs()), Trial(jobs=2, steps=2))


@pytest.mark.parametrize(
    "values", [{"jobs": 0}, {"steps": 0}, {"chunk": 0}, {"first": -1}, {"restart_seconds": -1.0}]
)
def test_a_trial_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Trial(**values)  # type: ignore[arg-type]


def test_where_nothing_fits_no_share_is_taken_of_it() -> None:
    """One slot a stage runs on average, but no allocation survives the noise: there is no best to compare with."""
    jobs = Jobs.of(
        stages=2, jobs=3, cpu=1e-5, slot_bytes=1e9, cpus=4.0, block_rows=1000.0,
        memory=[[1e12], [2.2e9], [2.2e9]], memory_noise=[0.0, 0.2, 0.2],
    )  # fmt: skip
    assert plan(jobs, 2).feasible[:, 0].tolist() == [True, False, False]
    trace = evaluate({"static": Static}, GivenJobs(jobs), Trial(jobs=3, steps=12))["static"]
    assert np.isnan(trace.rate[1:]).all()
    found = outcomes(trace)
    assert 0 < found.whole[0] <= 1
    assert np.isnan(found.whole[1:]).all()
    (told,) = summarise({"static": trace})
    assert told.curve.max() <= 1.01
    assert told.outcomes["whole"].mean == pytest.approx(found.whole[0])
