from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from intune.envs.conditions import Coming, channels, record
from intune.envs.course import Course
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.source import JobSource
from tests.envs.generated import eventful_jobs, plain_jobs, seeds

PARTS = ("noise", "hiccup_rate", "drift", "loss_rate", "memory_noise", "measurement_noise")
STEPS = 9


def numbers_for(jobs: Jobs, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((len(jobs), STEPS, channels(jobs.stages)), dtype=np.float32)


def arrays(coming: Coming, rows: Any = slice(None)) -> dict[str, NDArray[Any]]:
    named = {f.name: getattr(coming.conditions, f.name) for f in fields(coming.conditions)}
    named |= {"measured": coming.measured, "slot_limit": coming.slot_limit}
    return {name: np.asarray(value, dtype=float)[rows] for name, value in named.items()}


def assert_same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> None:
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@settings(max_examples=25)
@given(seeds, st.sets(st.sampled_from(PARTS)), st.booleans(), st.integers(0, 2))
def test_every_job_has_the_conditions_that_were_recorded_for_it_alone(
    seed: int, gone: set[str], resized: bool, wider: int
) -> None:
    rng = np.random.default_rng(seed)
    # Of every part some jobs have it; of those left out, none.
    changes: dict[str, Any] = {}
    jobs = eventful_jobs(rng, 6) if resized else plain_jobs(rng, 6, noise=0.3, hiccup_rate=0.1)
    for name in PARTS:
        value = getattr(jobs, name).copy()
        value[rng.random(6) < (1.0 if name in gone else 0.5)] = 0.0
        changes[name] = value
    if resized:
        changes["event_time"] = rng.permuted(jobs.event_time, axis=1)
    jobs = jobs.with_(**changes)
    normals = numbers_for(jobs, rng)
    stages = jobs.stages + wider
    course = Course(jobs, normals.copy(), stages=stages)
    for steps in (np.zeros(6, dtype=int), rng.integers(0, STEPS + 3, 6)):
        together = arrays(course.at(steps))
        for row, step in enumerate(steps):
            alone = record(jobs.take([row]), normals[[row]]).widened(stages).at(np.array([step]))
            assert_same(arrays(alone, 0), {name: value[row] for name, value in together.items()})


@pytest.mark.parametrize("family", Scenario.names())
def test_families_have_the_conditions_that_are_recorded(family: str) -> None:
    jobs, normals = JobSource(Scenario.load(family)).take(np.arange(50, 200), STEPS)
    tape, course = record(jobs, normals), Course(jobs, normals)
    for steps in (np.zeros(150, dtype=int), np.arange(150) % (STEPS + 2)):
        assert_same(arrays(tape.at(steps)), arrays(course.at(steps)))


@settings(max_examples=10)
@given(seeds)
def test_jobs_put_in_the_place_of_others_keep_their_conditions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs, calm = eventful_jobs(rng, 6), plain_jobs(rng, 6)
    calm = calm.widened(stages=7, nodes=2, events=2)
    jobs = jobs.widened(stages=7, nodes=2, events=2)
    one, other = Course(calm, numbers_for(calm, rng)), Course(jobs, numbers_for(jobs, rng))
    steps = rng.integers(0, STEPS, 6)
    expected, kept = arrays(other.at(steps)), arrays(one.at(steps))
    one.put(np.array([1, 4]), other, np.array([4, 2]))
    mixed = steps.copy()
    mixed[[1, 4]] = steps[[4, 2]]
    found = arrays(one.at(mixed))
    assert_same({k: v[[4, 2]] for k, v in expected.items()}, {k: v[[1, 4]] for k, v in found.items()})
    others = [0, 2, 3, 5]
    assert_same({k: v[others] for k, v in kept.items()}, {k: v[others] for k, v in found.items()})


def test_what_was_returned_does_not_change_afterwards() -> None:
    rng = np.random.default_rng(0)
    jobs = eventful_jobs(rng, 4)
    course = Course(jobs, numbers_for(jobs, rng))
    before = course.at(np.zeros(4, dtype=int))
    copies = {name: value.copy() for name, value in arrays(before).items()}
    course.put(np.arange(2), Course(jobs.with_(cpu=jobs.cpu * 2.0), numbers_for(jobs, rng)), np.arange(2))
    assert_same(copies, arrays(before))


def test_asking_does_not_change_the_steps_asked_for() -> None:
    jobs = plain_jobs(np.random.default_rng(0), 2)
    steps = np.array([1, 99])
    Course(jobs, np.zeros((2, 4, channels(jobs.stages)), dtype=np.float32)).at(steps)
    assert steps.tolist() == [1, 99]
