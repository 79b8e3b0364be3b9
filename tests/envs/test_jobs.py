from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from intune.envs.jobs import (
    ABSENT_WAIT,
    EVENT_FIELDS,
    JOB_FIELDS,
    NODE_FIELDS,
    STAGE_FIELDS,
    Jobs,
    slot_limit,
)
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError
from tests.envs.generated import eventful_jobs


def same(one: Jobs, other: Jobs) -> None:
    for field in fields(Jobs):
        np.testing.assert_array_equal(
            getattr(one, field.name), getattr(other, field.name), err_msg=field.name
        )


def test_every_field_is_of_stages_jobs_nodes_or_events() -> None:
    named = {*STAGE_FIELDS, *JOB_FIELDS, *NODE_FIELDS, *EVENT_FIELDS, "present"}
    assert named == {field.name for field in fields(Jobs)}


def test_values_are_spread_over_jobs_and_stages() -> None:
    jobs = Jobs.of(
        stages=[2, 3], jobs=2, cpu=[[1.0, 2.0, 3.0]], step=[5.0, 6.0], cpus=[[4.0, 8.0]], noise=0.5
    )
    assert len(jobs) == 2
    assert jobs.stages == 3
    assert jobs.cpu.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert jobs.step.tolist() == [5, 6]
    assert jobs.cpus.tolist() == [[4, 8], [4, 8]]
    assert jobs.limit.tolist() == [48, 48]
    assert jobs.event_time.shape == (2, 0)


def test_absent_stages_have_no_cost_but_a_touch() -> None:
    jobs = Jobs.of(stages=[1, 2], jobs=2, cpu=1e-3, most_slots=9.0)
    assert jobs.present.tolist() == [[True, False], [True, True]]
    assert jobs.cpu[0, 1] == 0.0
    assert jobs.wait[0, 1] == ABSENT_WAIT
    assert jobs.most_slots[0, 1] == 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speed": 3}, ["speed", "unknown", "slots_per_cpu"]),
        ({"cpu": np.nan}, ["cpu", "nan", "job 0"]),
        ({"cpu": -1.0}, ["cpu", "-1.0", "0 or more"]),
        ({"cpu": [1.0, 2.0, 3.0]}, ["cpu", "(3,)", "(1, 2)"]),
        ({"contention": 1.5}, ["contention", "1.5", "from 0 to 1"]),
        ({"step": 0.0}, ["step", "0.0"]),
        ({"interval": 0.0}, ["interval"]),
        ({"hiccup_factor": 0.5}, ["hiccup_factor", "1 or more"]),
        ({"drift": np.inf}, ["drift", "inf"]),
        ({"cpus": 0.0}, ["cpus", "1 or more"]),
        ({"cpus": np.inf}, ["cpus", "inf", "job 0", "finite"]),
        ({"interval": np.inf}, ["interval", "finite"]),
        ({"resize_delay": [np.inf]}, ["resize_delay", "finite, 0 or more"]),
        ({"row_bytes": [[160.0, np.inf]]}, ["row_bytes", "(0, 1)", "finite"]),
        ({"cpu": "fast"}, ["cpu", "'fast'", "numbers"]),
        ({"cpu": [[1.0], [1.0, 2.0]]}, ["cpu", "numbers"]),
        ({"cpu": 0.0, "wait": 0.0}, ["cpu", "wait", "above 0"]),
        ({"memory": 0.0}, ["memory", "job 0", "node 0", "above 0 bytes"]),
        ({"nic": 0.0}, ["nic", "job 0", "node 0", "above 0 bytes/s"]),
        ({"cpus": [[4.0, 4.0]], "nic": [[1e9, 0.0]]}, ["nic", "node 1", "above 0"]),
        ({"event_time": [[200.0, 100.0]]}, ["event_time", "[200.0, 100.0]", "job 0", "ascending"]),
        ({"event_time": [[np.inf, 100.0]]}, ["event_time", "job 0", "inf (no event) last"]),
    ],
)
def test_values_that_make_no_sense_are_named(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Jobs.of(stages=2, **values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("stages", "jobs"), [(0, 1), (2, 0), ([1, 2], 3), ([2, 0], 2), (1.5, 1), ("two", 1)])
def test_jobs_and_their_stages_are_one_at_least(stages: Any, jobs: int) -> None:
    with pytest.raises(ConfigError, match=r"`stages`=.* must be 1 or more.* `jobs`="):
        Jobs.of(stages=stages, jobs=jobs)


def test_what_is_no_limit_may_be_infinite_and_all_that_is_measured_is_finite() -> None:
    unlimited = (
        "memory",
        "nic",
        "queue_bytes",
        "storage_bandwidth",
        "storage_rate",
        "memory_bandwidth",
        "most_slots",
    )
    simulator = Simulator(Jobs.of(stages=2, event_time=[[np.inf]], **dict.fromkeys(unlimited, np.inf)))
    assert simulator.run().sound().all()


def test_nodes_that_are_not_there_need_neither_memory_nor_network() -> None:
    jobs = Jobs.of(stages=2, cpus=[[4.0, 0.0]], memory=[[1e9, 0.0]], nic=[[1e9, 0.0]])
    jobs.widened(stages=2, nodes=4, events=1).check()


def test_events_are_ascending_in_each_job_and_may_coincide() -> None:
    times = [[5.0, 5.0, np.inf], [1.0, 2.0, 3.0], [np.inf, np.inf, np.inf]]
    assert Jobs.of(stages=2, jobs=3, event_time=times).event_time.tolist() == times
    with pytest.raises(ConfigError, match="of job 1 must be ascending"):
        Jobs.of(stages=2, jobs=2, event_time=[[1.0, 2.0], [2.0, 1.0]])


def test_jobs_can_be_taken_and_joined() -> None:
    rng = np.random.default_rng(0)
    jobs = eventful_jobs(rng, 6)
    same(Jobs.joined([jobs.take([0, 1]), jobs.take(slice(2, 6))]), jobs)
    wide = jobs.widened(stages=9, nodes=2, events=2)
    same(wide.take([0, 2]), jobs.take([0, 2]).widened(stages=9, nodes=2, events=2))


def test_families_of_different_width_are_joined_to_the_widest() -> None:
    joined = Jobs.joined([Jobs.of(stages=2, cpus=[[1.0, 2.0]]), Jobs.of(stages=3, event_time=[[5.0]])])
    assert joined.present.tolist() == [[True, True, False], [True, True, True]]
    assert joined.cpus.tolist() == [[1, 2], [8, 0]]
    assert joined.event_time.tolist() == [[np.inf], [5.0]]
    joined.check()


@pytest.mark.parametrize(("name", "value"), [("stages", 1), ("nodes", 0), ("events", 1)])
def test_jobs_cannot_be_made_narrower(name: str, value: int) -> None:
    jobs = Jobs.of(stages=2, event_time=[[1.0, 2.0]])
    with pytest.raises(ConfigError, match=name):
        jobs.widened(**({"stages": 2, "nodes": 1, "events": 2} | {name: value}))


def test_there_is_a_slot_for_every_stage_at_least() -> None:
    limit = slot_limit(np.array([2.0, 4.0]), np.array([1.5, 1.5]), np.array([5, 5]))
    assert limit.tolist() == [5, 6]


def test_the_limit_is_what_the_product_is_on_paper() -> None:
    assert 45 * 1.4 < 63
    assert Jobs.of(stages=2, cpus=45.0, slots_per_cpu=1.4).limit.tolist() == [63]
