from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from intune.envs.conditions import channels
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.simulated import SimulatedPipelineEnv
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
    monkeypatch.setattr("intune.envs.source._KEPT_BYTES", 1)
    source = JobSource(wide)
    before, numbers = source.take([1], 3)
    for block in range(1, 4):
        source.take([block * BLOCK], 3)
    after, again = source.take([1], 3)
    assert same(before, after)
    np.testing.assert_array_equal(numbers, again)


def test_long_episodes_are_not_all_kept() -> None:
    source = JobSource(Scenario.load("criteo"))
    first = source.normals([3], 4000)
    for block in range(1, 8):
        source.normals([block * BLOCK, 3], 4000)
    block_bytes = BLOCK * 4000 * channels(source.scenario.max_stages) * 4
    assert source._normals.nbytes <= 2**26
    assert source._normals.nbytes % block_bytes == 0
    assert source._normals.nbytes >= 2 * block_bytes
    np.testing.assert_array_equal(source.normals([3], 4000), first)


def test_blocks_that_grew_are_counted_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    source = JobSource(Scenario.load("criteo"))
    step = BLOCK * channels(source.scenario.max_stages) * 4
    monkeypatch.setattr("intune.envs.source._KEPT_BYTES", 30 * step)
    for steps in (2, 9, 5):
        source.normals([0, BLOCK, 2 * BLOCK], steps)
        assert source._normals.nbytes == 3 * max(steps, 9 if steps > 2 else 2) * step
    source.normals([0], 20)  # 38 with the two others
    assert source._normals.nbytes == 29 * step


def test_threads_get_the_same_numbers_however_little_is_kept(
    wide: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.envs.source._KEPT_BYTES", 1)
    ids = np.arange(0, 6 * BLOCK, 7)
    expected = JobSource(wide).normals(ids, 6)
    source = JobSource(wide)
    with ThreadPoolExecutor(4) as pool:
        for steps, numbers in [
            (steps, pool.submit(source.normals, ids, steps)) for steps in (1, 6, 3, 5) * 4
        ]:
            np.testing.assert_array_equal(numbers.result(), expected[:, :steps])


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_a_copy_has_the_same_jobs(wide: Scenario, copied: Callable[[Any], Any]) -> None:
    source = JobSource(wide, split="test", seed=2**40)
    jobs, numbers = source.take([5, 900], 7)
    made = copied(source)
    assert (made.split, made.seed, made.scenario) == ("test", 2**40, wide)
    again, same_numbers = made.take([5, 900], 7)
    assert same(jobs, again)
    np.testing.assert_array_equal(numbers, same_numbers)


@pytest.mark.parametrize("copied", COPIES[1:], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_environment_can_be_copied_and_goes_on_alike(copied: Callable[[Any], Any], begun: bool) -> None:
    env = SimulatedPipelineEnv("paper", observation="flat")
    if begun:
        env.reset(seed=4)
        env.step([3] * env.stages)
    made = copied(env)
    if not begun:
        env.reset(seed=4)
        made.reset(seed=4)
    for one, other in zip(env.step([4] * env.stages), made.step([4] * env.stages), strict=True):
        np.testing.assert_equal(one, other)


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
