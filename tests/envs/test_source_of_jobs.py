from __future__ import annotations

import numpy as np

from intune.envs.job_sources import JOBS_PER_SEED, GivenJobs, first_job
from intune.envs.jobs import Jobs
from intune.envs.simulated import SimulatedPipelineEnv


def rows_of(source: GivenJobs, ids: list[int]) -> list[float]:
    return source.take(ids, 1)[0].cpu[:, 0].tolist()


def jobs_by_row(count: int) -> Jobs:
    return Jobs.of(stages=2, jobs=count, cpu=np.arange(1.0, count + 1)[:, None] * np.ones((count, 2)))


def test_given_jobs_come_in_order_over_and_over() -> None:
    assert rows_of(GivenJobs(jobs_by_row(3)), [0, 1, 2, 3, 7]) == [1.0, 2.0, 3.0, 1.0, 2.0]


def test_seeds_begin_with_different_given_jobs() -> None:
    # 17 divides JOBS_PER_SEED + 1.
    for count in (1, 2, 3, 8, 17, 64):
        source = GivenJobs(jobs_by_row(count))
        begun = rows_of(source, [first_job(seed) for seed in range(count)])
        assert sorted(begun) == list(range(1, count + 1))
        assert rows_of(source, [first_job(seed) for seed in range(count)]) == begun
        after = rows_of(source, [first_job(1) + 1])
        assert after == [float((1 + 1) % count + 1)]


def test_each_number_has_chance_of_its_own() -> None:
    source = GivenJobs(jobs_by_row(2))
    _, numbers = source.take([0, 2, JOBS_PER_SEED], 3)
    _, again = source.take([JOBS_PER_SEED, 0], 3)
    assert len(np.unique(numbers[:, 0, 0])) == 3
    np.testing.assert_array_equal(numbers[[2, 0]], again)


def test_environments_of_different_seeds_do_not_begin_alike() -> None:
    jobs = jobs_by_row(8).with_(cpu=np.arange(1.0, 9.0)[:, None] * 1e-5 * np.ones((8, 2)))
    env = SimulatedPipelineEnv(jobs)
    rates = [env.reset(seed=seed)[1]["rate"] for seed in range(8)]
    assert len(set(rates)) == 8
