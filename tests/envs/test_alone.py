from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intune.envs.alone import JobAlone
from intune.envs.alone_observation import job_numbers, paper_numbers, stage_numbers
from intune.envs.conditions import channels, record
from intune.envs.episode import Episode, EpisodeOfArrays
from intune.envs.job_sources import GivenJobs
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.observation import job_features, paper_features, stage_features
from intune.envs.reward import Reward
from intune.envs.settings import EnvSettings
from intune.envs.simulator import Simulator
from tests.envs.generated import eventful_jobs, plain_jobs, seeds

many = settings(max_examples=25)


@many
@example(84085, True)
@given(seeds, st.booleans())
def test_a_job_alone_runs_as_one_of_many(seed: int, eventful: bool) -> None:
    rng = np.random.default_rng(seed)
    jobs = (eventful_jobs if eventful else plain_jobs)(rng, 3)
    normals = rng.standard_normal((3, 12, channels(jobs.stages)), dtype=np.float32)
    row = [int(rng.integers(3))]
    many_jobs = Simulator(jobs, record(jobs, normals), restart_seconds=13.0)
    one = jobs.take(row)
    alone = JobAlone(one, record(one, normals[row]), restart_seconds=13.0)
    if rng.random() < 0.5:
        begin = rng.integers(1, 6, jobs.present.shape)
        many_jobs.begin_with(begin)
        alone.begin_with(begin[row[0], : alone.count].tolist())
    before = None
    for _ in range(12):
        wanted = rng.integers(-3, 25, jobs.present.shape) + rng.integers(0, 2) * rng.random(
            jobs.present.shape
        )
        moved = many_jobs.allocate(wanted)[row[0]]
        assert alone.allocate(wanted[row[0], : alone.count].tolist()) == moved
        measured, reading = many_jobs.run().take(row), alone.run()
        found = alone.measurement(reading)
        for field in fields(Measurement):
            ours = np.asarray(getattr(found, field.name), dtype=float)
            theirs = np.asarray(getattr(measured, field.name), dtype=float) * _present(measured, field.name)
            # What is left of a queue is the difference of two large numbers. NaN is looked at by the slower one.
            if not (np.abs(ours - theirs) <= 1e-9 + 1e-6 * np.abs(theirs)).all():
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=field.name)
        assert alone.limit == many_jobs.limit[row[0]]
        if before is not None:
            last, reading_before = before
            best = float(rng.uniform(1, 1e6))
            for ours, theirs in (
                (stage_numbers(alone, reading, reading_before), stage_features(measured, last)),
                (
                    job_numbers(alone, reading, reading_before, best),
                    job_features(measured, last, np.array([best])),
                ),
                (paper_numbers(alone, reading), paper_features(measured)),
            ):
                np.testing.assert_allclose(ours, theirs.reshape(-1), atol=3e-5)
        before = measured, reading


def _present(measured: Measurement, name: str) -> Any:
    """Absent stages hold whatever block they would make; nobody reads it."""
    return measured.present if name in ("block_bytes", "queued_bytes") else 1.0


@many
@given(
    seeds,
    st.sampled_from(["features", "flat", "paper"]),
    st.sampled_from(["first", "trainer", "none", 1e4]),
    st.sampled_from(["end", "restart"]),
    st.sampled_from(["moves", "absolute"]),
)
def test_an_episode_is_one_of_episodes(
    seed: int, observation: Any, reference: Any, on_kill: Any, action: Any
) -> None:
    rng = np.random.default_rng(seed)
    weights = dict(
        zip(("rate", "memory", "slots", "moving", "killed"), rng.uniform(0, 3, 5).tolist(), strict=True)
    )
    chosen = EnvSettings(
        observation=observation,
        reference=reference,
        on_kill=on_kill,
        action=action,
        reward=Reward(**weights),
        episode_steps=8,
        restart_seconds=12.0,
    )
    jobs = eventful_jobs(rng, 3)
    width = jobs.stages + int(rng.integers(0, 3))
    one, other = (
        kind(GivenJobs(jobs), chosen, np.array([7]), stages=width) for kind in (Episode, EpisodeOfArrays)
    )
    for _ in range(8):
        _assert_same(one.observe(), other.observe())
        given_action = rng.integers(0, 5, width) if action == "moves" else rng.uniform(0, 20, width)
        one.step(given_action)
        other.step(given_action)
        assert one.reward == pytest.approx(other.reward, rel=1e-6, abs=1e-9)
        assert (one.moved, one.terminated, one.truncated) == (other.moved, other.terminated, other.truncated)
        assert one.summary() == pytest.approx(other.summary())
        assert one.now.slot_limit == other.now.slot_limit
        if one.terminated:
            break


def _assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.dtype == other[key].dtype
            np.testing.assert_allclose(value, other[key], atol=3e-5, err_msg=key)
    else:
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_what_an_episode_returns_stays_as_it_is() -> None:
    episode = Episode(GivenJobs(Jobs.of(stages=2, noise=0.1)), EnvSettings(), np.array([0]), stages=2)
    seen = episode.observe()
    copy = {key: value.copy() for key, value in seen.items()}
    measured = episode.now
    slots = measured.slots.copy()
    episode.step([3, 3])
    np.testing.assert_array_equal(measured.slots, slots)
    for key, value in copy.items():
        np.testing.assert_array_equal(seen[key], value)
