"""`OnePipelineEnv`: what environments of one pipeline have in common, whether it is simulated or runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from numpy.typing import NDArray

from intune.envs import render, spaces
from intune.envs.measurement import Measurement
from intune.envs.settings import EnvSettings
from intune.pipelines.errors import ConfigError

RENDER_MODES = ("rgb_array", "ansi")
HISTORY = 240
"""Intervals of the rate that a picture shows at most."""


class OnePipelineEnv(gym.Env[Any, Any]):
    """Spaces, masks and pictures of one pipeline.

    Args:
        settings: how it is observed, acted on and judged.
        width: stages that it may have.
        render_mode: ``rgb_array``, ``ansi`` or None.

    Raises:
        ConfigError: another render mode, or fewer stages in `settings`.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(self, settings: EnvSettings, width: int, *, render_mode: str | None) -> None:
        check_render_mode(render_mode)
        self.settings = settings
        self.stages = width_of(width, settings)
        self.render_mode = render_mode
        self.observation_space = spaces.observation_space(settings.observation, self.stages)
        self.action_space = spaces.action_space(settings.action, self.stages, pool=settings.pool)
        self._over = self._closed = False
        self._rates: deque[float] = deque(maxlen=HISTORY)

    @property
    def measurement(self) -> Measurement:
        """What was measured of the last interval (N = 1): what agents that are not neural networks decide on.

        Raises:
            ResetNeeded: before `reset`.
        """
        raise NotImplementedError

    def action_masks(self) -> NDArray[np.bool_]:
        """Which moves would be made in full: ``[S x 5]``, stage by stage (see `spaces.action_masks`).

        The name and the layout are those that masked learners look for.

        Raises:
            ConfigError: with absolute actions, which have none.
            ResetNeeded: before `reset`.
        """
        check_masked(self.settings)
        now = self.measurement
        return spaces.action_masks(now.present, now.slots, now.slot_limit).reshape(-1)

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
        return picture_of(self.render_mode)(self.measurement, self._rates)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("the environment is closed; make another")


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


def check_masked(settings: EnvSettings) -> None:
    """Look whether there are masks.

    Raises:
        ConfigError: absolute actions have none.
    """
    if settings.action != "moves":
        raise ConfigError('`action_masks` needs `action`="moves"')


def picture_of(mode: str) -> Callable[[Measurement, Sequence[float]], Any]:
    """What draws one job and its rates as `render_mode` says."""
    return render.picture if mode == "rgb_array" else render.text
