"""Where an environment's jobs come from: a scenario, or jobs that a user made. What they share is `take`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from intune.envs.conditions import channels
from intune.envs.jobs import Ints, Jobs
from intune.envs.settings import EnvSettings
from intune.pipelines.errors import ConfigError

MOST_JOBS = 2**62
"""Jobs are numbered from 0 to below this."""

JOBS_PER_SEED = 2**20
"""An environment takes jobs one after another, because a `JobSource` draws neighbours together; environments of
different seeds begin so far from each other that they meet the same job only after so many episodes."""


class Jobbing(Protocol):
    """Jobs by their number; the same number gives the same job and the same chance, whatever was taken before."""

    def take(self, ids: Any, steps: int) -> tuple[Jobs, NDArray[Any]]:
        """The jobs `ids`, and their random numbers ``[n, steps, channels(S)]``."""
        ...


class GivenJobs:
    """The jobs of a `Jobs`, over and over, each number with chance of its own.

    Number i below `JOBS_PER_SEED` is row ``i % N``. The first of an environment seeded with s (see `first_job`) is row
    ``s % N``, and the next ones follow it: environments of different seeds do not all begin with the same job.

    Args:
        jobs: N jobs.
        seed: of the random numbers.
    """

    def __init__(self, jobs: Jobs, *, seed: int = 0) -> None:
        self._jobs = jobs
        self._seed = seed

    def take(self, ids: Any, steps: int) -> tuple[Jobs, NDArray[np.float32]]:
        """See `Jobbing`."""
        numbers: Ints = np.asarray(ids, dtype=np.int64)
        seeds, places = np.divmod(numbers, JOBS_PER_SEED)
        jobs = self._jobs.take((seeds + places) % len(self._jobs))
        normals = np.empty((len(numbers), steps, channels(jobs.stages)), dtype=np.float32)
        for row, number in enumerate(numbers.tolist()):
            rng = np.random.default_rng((self._seed, number))
            rng.standard_normal(out=normals[row], dtype=np.float32)
        return jobs, normals


def first_job(seed: int) -> int:
    """Number of the first job of an environment seeded with `seed`; the next ones follow it."""
    return seed % (MOST_JOBS // JOBS_PER_SEED // 2) * JOBS_PER_SEED


def source_of(scenario: Any, settings: EnvSettings) -> tuple[Jobbing, int]:
    """Jobs of `scenario`, and how many stages they have at most.

    Args:
        scenario: a built-in scenario's name, a file's path, a `Scenario`, or `Jobs`.
        settings: its `split` and `source_seed` are used; of `Jobs` there is no split.

    Raises:
        ConfigError: none of those, or a scenario that makes no sense.
    """
    if isinstance(scenario, Jobs):
        return GivenJobs(scenario, seed=settings.source_seed), scenario.stages
    from intune.envs.scenario import Scenario
    from intune.envs.source import JobSource

    if isinstance(scenario, str | Path):
        scenario = Scenario.load(scenario)
    if not isinstance(scenario, Scenario):
        raise ConfigError(
            f"`scenario`={scenario!r} must be a scenario's name, the path of a file, a Scenario or Jobs"
        )
    return JobSource(scenario, split=settings.split, seed=settings.source_seed), scenario.max_stages
