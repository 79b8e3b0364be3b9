"""`SimulatedPipelineEnv`: one simulated job as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from intune.envs.episode import Episode, EpisodeOfArrays, Running
from intune.envs.job_sources import MOST_JOBS, first_job, source_of
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.envs.one_pipeline import OnePipelineEnv
from intune.envs.settings import EnvSettings
from intune.pipelines.errors import ConfigError


class SimulatedPipelineEnv(OnePipelineEnv):
    """One job, tuned for an episode: each step gives slots, runs one interval and measures it.

    The first interval is over when `reset` returns: one slot a stage, or `options["slots"]`. An episode is
    truncated after `episode_steps` decisions, and terminated where the job runs out of memory (or the job is
    restarted, see `EnvSettings.on_kill`).

    `info` has ``job`` (its number), ``rate`` (rows/s delivered), ``memory`` (share of the limit), ``moved`` (slots
    added plus slots taken away) and ``killed``.

    Args:
        scenario: a built-in scenario's name, a file's path, a `Scenario`, or `Jobs`.
        render_mode: ``rgb_array``, ``ansi`` or None.
        **settings: see `EnvSettings`.

    Raises:
        ConfigError: see `EnvSettings` and `source_of`.
    """

    def __init__(self, scenario: Any = "paper", *, render_mode: str | None = None, **settings: Any) -> None:
        chosen = EnvSettings.of(("scenario", "render_mode"), **settings)
        self._source, width = source_of(scenario, chosen)
        super().__init__(chosen, width, render_mode=render_mode)
        self._episode: Running | None = None
        self._job = 0
        self._next: int | None = None

    @property
    def measurement(self) -> Measurement:
        """See `OnePipelineEnv`."""
        return self._running().now

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode with another job.

        Args:
            seed: of the choice of jobs, as Gymnasium says.
            options: ``job`` (a number: that job of the source) and ``slots`` (``[S]``: slots to begin with).

        Raises:
            ConfigError: unknown options, or values that make no sense.
            ClosedEnvironmentError: after `close`.
        """
        self._check_open()
        super().reset(seed=seed)
        if seed is not None or self._next is None:
            self._next = first_job(int(self.np_random.integers(2**32)) if seed is None else seed)
        ids, slots = reset_options(options, np.array([self._next]), self.stages)
        self._next += 1
        kind = EpisodeOfArrays if self.settings.pool else Episode
        self._episode = kind(self._source, self.settings, ids, stages=self.stages, slots=slots)
        self._job = int(ids[0])
        self._over = False
        self._rates.clear()
        self._rates.append(self._episode.summary()[0])
        return self._episode.observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Give slots and run one interval.

        Raises:
            ConfigError: an action of the wrong shape, NaN, or a move that there is not.
            ResetNeeded: before `reset`, or when the episode is over.
            ClosedEnvironmentError: after `close`.
        """
        episode = self._running()
        if self._over:
            raise ResetNeeded("`step` after the episode ended; call `reset` to begin another")
        episode.step(action)
        self._over = episode.terminated or episode.truncated
        if self.render_mode is not None:
            self._rates.append(episode.summary()[0])
        return episode.observe(), episode.reward, episode.terminated, episode.truncated, self._info()

    def close(self) -> None:
        """Nothing is held; `reset` and `step` raise from now on."""
        self._closed = True
        self._episode = None

    def _info(self) -> dict[str, Any]:
        episode = self._running()
        rate, memory, killed = episode.summary()
        return {"job": self._job, "rate": rate, "memory": memory, "moved": episode.moved, "killed": killed}

    def _running(self) -> Running:
        self._check_open()
        if self._episode is None:
            raise ResetNeeded("call `reset` first")
        return self._episode


def reset_options(
    options: Mapping[str, Any] | None, drawn: NDArray[Any], stages: int
) -> tuple[NDArray[Any], Floats | None]:
    """Numbers of the jobs and slots to begin with, from the options of `reset`.

    Args:
        options: ``job``: a number, or one for each of N; ``slots``: ``[S]``, or ``[N, S]``.
        drawn: ``[N]`` jobs to take otherwise.
        stages: S.

    Raises:
        ConfigError: unknown options, or values that make no sense.
    """
    options = options or {}
    for name in options:
        if name not in ("job", "slots"):
            raise ConfigError(f"unknown option `{name}` of `reset`; known are job, slots")
    ids, slots = drawn, None
    if options.get("job") is not None:
        given = np.asarray(options["job"])
        if given.dtype.kind not in "iu" or given.shape not in ((), drawn.shape):
            raise ConfigError(
                f"`job`={options['job']!r} of `reset` must be a whole number, or one for each job"
            )
        ids = np.array(np.broadcast_to(given.astype(np.int64), drawn.shape))
        if ids.min() < 0 or ids.max() >= MOST_JOBS:
            raise ConfigError(f"`job`={options['job']!r} of `reset` must be from 0 to {MOST_JOBS - 1}")
    if options.get("slots") is not None:
        try:
            asked = np.asarray(options["slots"], dtype=np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"`slots`={options['slots']!r} of `reset` must be numbers") from None
        if asked.shape not in ((stages,), (len(drawn), stages)):
            raise ConfigError(f"`slots` of `reset` has shape {asked.shape}, but ({stages},) is needed")
        if not np.isfinite(asked).all() or asked.min() < 0:
            raise ConfigError(f"`slots`={asked.tolist()} of `reset` must be finite numbers of 0 or more")
        slots = np.array(np.broadcast_to(asked, (len(drawn), stages)))
    return ids, slots
