from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from intune.envs.conditions import channels
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.source import BLOCK, SPLITS, JobSource
from intune.pipelines.errors import ConfigError


@pytest.fixture(scope="module")
def wide() -> Scenario:
    return Scenario.load("wide")


def same(first: Jobs, second: Jobs) -> bool:
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Jobs))


def test_a_job_is_the_same_whatever_is_drawn_beside_and_before_it(wide: Scenario) -> None:
    ids = np.array([3, 700, 64, 63, 3, 12_345_678_901])
    together, numbers = JobSource(wide).take(ids, 5)
    other = JobSource(wide)
    for row, one in reversed(list(enumerate(ids))):
        alone, normals = other.take([int(one)], 5)
        assert same(together.take([row]), alone)
        np.testing.assert_array_equal(numbers[row], normals[0])


def test_forgetting_a_block_does_not_change_it(wide: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intune.envs.source._KEPT_JOBS", 1)
    monkeypatch.setattr("intune.envs.source._KEPT_NORMALS", 1)
    source = JobSource(wide)
    before, numbers = source.take([1], 3)
    for block in range(1, 4):
        source.take([block * BLOCK], 3)
    after, again = source.take([1], 3)
    assert same(before, after)
    np.testing.assert_array_equal(numbers, again)


def test_more_steps_begin_with_the_same_numbers(wide: Scenario) -> None:
    long = JobSource(wide).normals([5, 90], 40)
    source = JobSource(wide)
    np.testing.assert_array_equal(source.normals([5, 90], 7), long[:, :7])
    np.testing.assert_array_equal(source.normals([5, 90], 40), long)
    assert long.dtype == np.float32
    assert long.shape == (2, 40, channels(wide.max_stages))


def test_normals_are_standard_and_independent() -> None:
    numbers = JobSource(Scenario.load("criteo")).normals(np.arange(256), 32).astype(float)
    size = numbers.size
    assert abs(numbers.mean()) < 5 / np.sqrt(size)
    assert abs(numbers.std() - 1) < 5 / np.sqrt(2 * size)
    by_job = numbers.reshape(256, -1)
    correlation = np.corrcoef(by_job) - np.eye(256)
    assert np.abs(correlation).max() < 7 / np.sqrt(by_job.shape[1])


def test_splits_and_seeds_share_no_job_and_no_number(wide: Scenario) -> None:
    ids = np.arange(4 * BLOCK)
    seen: set[float] = set()
    for split in SPLITS:
        for seed in (0, 1, 2**32, 2**32 + 1):
            jobs, numbers = JobSource(wide, split=split, seed=seed).take(ids, 1)
            costs = set(jobs.cpu[:, 0].tolist())
            first = set(numbers[:, 0, :3].astype(float).sum(axis=1).tolist())
            assert len(costs) == len(ids)
            assert not seen & costs
            assert not seen & first
            seen |= costs | first


def test_generators_belong_to_their_job(wide: Scenario) -> None:
    source = JobSource(wide, seed=4)
    jobs, given = source.take([9, 2])
    assert len(jobs) == len(given) == 2
    again = JobSource(wide, seed=4).generators([2])[0]
    drawn = given[1].random(8)
    np.testing.assert_array_equal(drawn, again.random(8))
    assert not np.array_equal(drawn, given[0].random(8))


@pytest.mark.parametrize("split", SPLITS)
def test_every_family_has_jobs_for_every_split(split: Any) -> None:
    for name in Scenario.names():
        scenario = Scenario.load(name)
        jobs = JobSource(scenario, split=split).jobs([0, 100])
        jobs.check()
        assert jobs.present.shape == (2, scenario.max_stages)


def test_bad_arguments_are_named(wide: Scenario) -> None:
    source = JobSource(wide)
    with pytest.raises(ConfigError, match="`split`='dev' must be one of train, validation, test"):
        JobSource(wide, split="dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`seed`=-1 must be 0"):
        JobSource(wide, seed=-1)
    with pytest.raises(ConfigError, match="`steps`=0 must be 1 or more"):
        source.normals([1], 0)
    for ids in ([], [0.5], [[1]]):
        with pytest.raises(ConfigError, match="must be a list of whole numbers"):
            source.jobs(np.array(ids))
    with pytest.raises(ConfigError, match="`ids` has -3 to 2 in it"):
        source.jobs([2, -3])
