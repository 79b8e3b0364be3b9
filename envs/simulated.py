"""`SimulatedPipelineEnv`: one simulated job as a Gymnasium environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from numpy.typing import NDArray

from intune.envs import render, spaces
from intune.envs.episode import Episode, EpisodeOfArrays, Running
from intune.envs.job_sources import MOST_JOBS, first_job, source_of
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.envs.settings import EnvSettings
from intune.pipelines.errors import ConfigError

RENDER_MODES = ("rgb_array", "ansi")
HISTORY = 240
"""Intervals of the rate that a picture shows at most."""


class SimulatedPipelineEnv(gym.Env[Any, Any]):
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

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(self, scenario: Any = "paper", *, render_mode: str | None = None, **settings: Any) -> None:
        check_render_mode(render_mode)
        self.settings = EnvSettings.of(("scenario", "render_mode"), **settings)
        self._source, width = source_of(scenario, self.settings)
        self.stages = width_of(width, self.settings)
        self.render_mode = render_mode
        self.observation_space = spaces.observation_space(self.settings.observation, self.stages)
        self.action_space = spaces.action_space(self.settings.action, self.stages, pool=self.settings.pool)
        self._episode: Running | None = None
        self._job = 0
        self._over = self._closed = False
        self._next: int | None = None
        self._rates: deque[float] = deque(maxlen=HISTORY)

    @property
    def measurement(self) -> Measurement:
        """What was measured of the last interval (N = 1): what agents that are not neural networks decide on.

        Raises:
            ResetNeeded: before `reset`.
        """
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

    def action_masks(self) -> NDArray[np.bool_]:
        """Which moves would be made in full: ``[S x 5]``, stage by stage (see `spaces.action_masks`).

        The name and the layout are those that masked learners look for.

        Raises:
            ConfigError: with absolute actions, which have none.
            ResetNeeded: before `reset`.
        """
        if self.settings.action != "moves":
            raise ConfigError('`action_masks` needs `action`="moves"')
        episode = self._running()
        now = episode.now
        return spaces.action_masks(now.present, now.slots, [episode.limit]).reshape(-1)

    def render(self) -> Any:
        """A picture ``[height, width, 3]`` or a text of the pipeline, as `render_mode` says.

        Raises:
            ResetNeeded: before `reset`.
        """
        if self.render_mode is None:
            gym.logger.warn(
                '`render` needs a `render_mode`: gymnasium.make(…, render_mode="rgb_array" or "ansi")'
            )
            return None
        now = self._running().now
        return (
            render.picture(now, self._rates)
            if self.render_mode == "rgb_array"
            else render.text(now, self._rates)
        )

    def close(self) -> None:
        """Nothing is held; `reset` and `step` raise from now on."""
        self._closed = True
        self._episode = None

    def _info(self) -> dict[str, Any]:
        episode = self._running()
        rate, memory, killed = episode.summary()
        return {"job": self._job, "rate": rate, "memory": memory, "moved": episode.moved, "killed": killed}

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("the environment is closed; make another")

    def _running(self) -> Running:
        self._check_open()
        if self._episode is None:
            raise ResetNeeded("call `reset` first")
        return self._episode


def check_render_mode(mode: str | None) -> None:
    """Look whether `mode` is one.

    Raises:
        ConfigError: it is not.
    """
    if mode is not None and mode not in RENDER_MODES:
        raise ConfigError(f"`render_mode`={mode!r} must be None, 'rgb_array' or 'ansi'")


def width_of(width: int, settings: EnvSettings) -> int:
    """Stages that actions and observations have room for.

    Raises:
        ConfigError: `settings.stages` is less than the jobs have.
    """
    if settings.stages is not None and settings.stages < width:
        raise ConfigError(f"`stages`={settings.stages} must be {width} or more: so many stages there are")
    return settings.stages or width


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
