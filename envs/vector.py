"""`SimulatedPipelineVectorEnv`: many simulated jobs at once as a Gymnasium vector environment. No loop over jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from gymnasium import logger
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from intune.envs import spaces
from intune.envs.episodes import Episodes
from intune.envs.job_sources import first_job, source_of
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement
from intune.envs.one_pipeline import (
    HISTORY,
    RENDER_MODES,
    check_masked,
    check_render_mode,
    picture_of,
    width_of,
)
from intune.envs.settings import EnvSettings
from intune.envs.simulated import reset_options
from intune.envs.succession import Succession, Turn
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least

CHUNK = 2048
"""Jobs computed together. Chosen by `benchmarks/envs.py`: their arrays stay in a core's cache, and the calls of NumPy,
which threads take turns at, are few for each job."""

LEAST_CHUNK = 256
"""Chunks are not made smaller than this to give every thread one: the threads would wait for each other's calls."""

T = TypeVar("T")

AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}


class SimulatedPipelineVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """`num_envs` times what `SimulatedPipelineEnv` is.

    Jobs are taken one after another, as that one does: at first by all, later by those whose episode has ended, in
    order. A job with its number (`info["job"]`) runs here as it runs there.

    Episodes that have ended begin again as `metadata["autoreset_mode"]` says: with ``next_step`` at the next step,
    whose action is not used and whose reward is 0; with ``same_step`` at once, the last observation and info of the
    ended episode being ``final_obs`` and ``final_info`` in `info`.

    Args:
        num_envs: N.
        scenario, render_mode, **settings: as of `SimulatedPipelineEnv`.
        autoreset: ``next_step`` or ``same_step``.
        chunk: jobs computed together.
        threads: that compute chunks at the same time.

    Raises:
        ConfigError: see `EnvSettings` and `source_of`.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Any = "paper",
        *,
        render_mode: str | None = None,
        autoreset: str = "next_step",
        chunk: int = CHUNK,
        threads: int = 1,
        **settings: Any,
    ) -> None:
        check_render_mode(render_mode)
        num_envs, chunk, threads = (
            at_least(name, value, 1)
            for name, value in (("num_envs", num_envs), ("chunk", chunk), ("threads", threads))
        )
        if autoreset not in AUTORESET:
            raise ConfigError(f"`autoreset`={autoreset!r} must be one of {', '.join(map(repr, AUTORESET))}")
        self.settings = EnvSettings.of(
            ("num_envs", "scenario", "render_mode", "autoreset", "chunk", "threads"), **settings
        )
        source, width = source_of(scenario, self.settings)
        self.stages = width_of(width, self.settings)
        self.num_envs, self.render_mode = num_envs, render_mode
        self._same_step = autoreset == "same_step"
        self.metadata = {**type(self).metadata, "autoreset_mode": AUTORESET[autoreset]}
        self.single_observation_space = spaces.observation_space(self.settings.observation, self.stages)
        self.single_action_space = spaces.action_space(
            self.settings.action, self.stages, pool=self.settings.pool
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if threads > 1:
            chunk = min(chunk, max(-(-num_envs // threads), LEAST_CHUNK))
        self._rows = [slice(at, min(at + chunk, num_envs)) for at in range(0, num_envs, chunk)]
        self._chunks: list[Episodes] = []
        self._succession = Succession(source, self.settings, stages=self.stages, parts=self._rows)
        self._threads = _Threads(threads) if threads > 1 and len(self._rows) > 1 else None
        self._ended: Bools = np.zeros(num_envs, dtype=bool)
        self._rates: list[deque[float]] = []

    @property
    def measurement(self) -> Measurement:
        """What was measured of the last interval of every job: what agents that are not neural networks decide on.

        Raises:
            ResetNeeded: before `reset`.
        """
        return Measurement.joined([chunk.now for chunk in self._running()])

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes with other jobs.

        Args:
            seed: of the choice of jobs, as Gymnasium says.
            options: ``job`` and ``slots`` as of `SimulatedPipelineEnv.reset`, for all or for each (``[N]``,
                ``[N, S]``), and ``reset_mask`` (``[N]``) where only some begin again.

        Raises:
            ConfigError: unknown options, or values that make no sense.
            ClosedEnvironmentError: after `close`.
        """
        self._check_open()
        given = dict(options or {})
        mask = self._reset_mask(given.pop("reset_mask", None))
        super().reset(seed=seed)
        succession = self._succession
        if seed is not None or not succession.started:
            succession.start(first_job(int(self.np_random.integers(2**32)) if seed is None else seed))
        rows = np.flatnonzero(mask)
        drawn = np.zeros(self.num_envs, dtype=np.int64)
        drawn[rows] = succession.numbers(len(rows))
        ids, slots = reset_options(given, drawn, self.stages)
        ids, slots = ids[rows], None if slots is None else slots[rows]
        self._ended[rows] = False
        if len(rows) == self.num_envs:
            self._chunks = self._each(
                lambda at: succession.begin(
                    ids[self._rows[at]], slots[self._rows[at]] if slots is not None else None
                )
            )
            self._rates = [deque(maxlen=HISTORY) for _ in range(self.num_envs)] if self.render_mode else []
        else:
            self._running()
            self._take(succession.turns_of(rows, succession.begin(ids, slots), np.arange(len(rows))))
        self._remember(mask)
        return self._observation(), self._infos(mask)

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Give slots and run one interval of every job.

        Args:
            actions: ``[N, S]`` (see `spaces.action_space`).

        Raises:
            ConfigError: actions of the wrong shape, NaN, or a move that there is not.
            ResetNeeded: before `reset`.
            ClosedEnvironmentError: after `close`.
        """
        self._running()
        given = np.asarray(actions)
        if given.shape != self.action_space.shape:
            raise ConfigError(f"`action` has shape {given.shape}, but {self.action_space.shape} is needed")
        # Before anything changes.
        given = spaces.checked_actions(self.settings.action, given)
        if self._same_step:
            return self._step_and_restart(given)
        again = self._ended
        turns: list[list[Turn]] = [[] for _ in self._rows]
        if again.any():
            for turn in self._succession.turns(np.flatnonzero(again)):
                turns[turn.chunk].append(turn)
        observation = self._room()

        def run(at: int) -> None:
            rows = self._rows[at]
            # A chunk of which every job begins anew is not needed any more.
            if not any(turn.replaces(self._chunks[at]) for turn in turns[at]):
                self._chunks[at].step(given[rows])
            for turn in turns[at]:
                self._chunks[at] = self._succession.take(turn, self._chunks[at])
            self._chunks[at].observe(out=_part(observation, rows))

        self._each(run)
        rewards, terminated, truncated = self._results()
        if again.any():
            rewards[again], terminated[again], truncated[again] = 0.0, False, False
        self._ended = (terminated | truncated) & ~again
        self._remember(again)
        return observation, rewards, terminated, truncated, self._infos(None)

    def _step_and_restart(
        self, given: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One interval of every job; episodes that end in it begin anew at once."""
        self._each(lambda at: self._chunks[at].step(given[self._rows[at]]))
        rewards, terminated, truncated = self._results()
        over = terminated | truncated
        infos: dict[str, Any] = {}
        if over.any():
            infos = self._final(over)
            self._take(self._succession.turns(np.flatnonzero(over)))
        self._remember(over)
        return self._observation(), rewards, terminated, truncated, {**self._infos(None), **infos}

    def _results(self) -> tuple[Floats, Bools, Bools]:
        """Rewards, and how episodes ended, as the chunks have them."""
        return (
            self._joined(lambda chunk: chunk.reward),
            self._joined(lambda chunk: chunk.terminated),
            self._joined(lambda chunk: chunk.truncated),
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """``[N, S x 5]``: see `SimulatedPipelineEnv.action_masks`.

        Raises:
            ConfigError: with absolute actions, which have none.
            ResetNeeded: before `reset`.
        """
        check_masked(self.settings)
        now = self.measurement
        return spaces.action_masks(now.present, now.slots, now.slot_limit).reshape(self.num_envs, -1)

    def render(self) -> Any:
        """A tuple with a picture or a text of each job, as `render_mode` says.

        Raises:
            ResetNeeded: before `reset`.
        """
        if self.render_mode is None:
            logger.warn(
                '`render` needs a `render_mode`: gymnasium.make_vec(…, render_mode="rgb_array" or "ansi")'
            )
            return None
        draw, now = picture_of(self.render_mode), self.measurement
        return tuple(draw(now.take(slice(i, i + 1)), rates) for i, rates in enumerate(self._rates))

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads; `reset` and `step` raise from now on."""
        self._chunks = []
        if self._threads is not None:
            self._threads.shutdown()

    def _take(self, turns: list[Turn]) -> None:
        """Begin the episodes of `turns`, at most one turn of every chunk at a time."""

        def take(at: int) -> None:
            for turn in turns:
                if turn.chunk == at:
                    self._chunks[at] = self._succession.take(turn, self._chunks[at])

        self._each(take)

    def _final(self, over: Bools) -> dict[str, Any]:
        """Last observations and infos of the episodes that are over."""
        last: NDArray[Any] = np.full(self.num_envs, None, dtype=object)
        for rows, chunk in zip(self._rows, self._chunks, strict=True):
            chosen = np.flatnonzero(over[rows])
            if not chosen.size:
                continue
            seen = chunk.observe(chosen)
            for at, row in enumerate((chosen + rows.start).tolist()):
                last[row] = {k: v[at] for k, v in seen.items()} if isinstance(seen, dict) else seen[at]
        infos = self._infos(over)
        return {"final_obs": last, "_final_obs": over, "final_info": infos, "_final_info": over.copy()}

    def _room(self) -> Any:
        """Arrays for the observations of all jobs."""
        return spaces.empty_observation(self.settings.observation, self.num_envs, self.stages)

    def _observation(self) -> Any:
        whole = self._room()
        self._each(lambda at: self._chunks[at].observe(out=_part(whole, self._rows[at])))
        return whole

    def _infos(self, which: Bools | None) -> dict[str, Any]:
        """Infos of the jobs where `which` (None: all), each with its mask, as Gymnasium lays them out."""
        values = {
            "job": self._joined(lambda chunk: chunk.ids),
            "rate": self._joined(lambda chunk: chunk.now.delivered),
            "memory": self._joined(lambda chunk: chunk.now.memory_used / chunk.now.memory_limit),
            "moved": self._joined(lambda chunk: chunk.moved),
            "killed": self._joined(lambda chunk: chunk.now.killed),
        }
        infos: dict[str, Any] = {}
        for name, value in values.items():
            infos[name] = value if which is None else np.where(which, value, np.zeros_like(value))
            infos[f"_{name}"] = np.ones(self.num_envs, dtype=bool) if which is None else which.copy()
        return infos

    def _joined(self, of: Callable[[Episodes], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([of(chunk) for chunk in self._chunks])

    def _each(self, act: Callable[[int], T]) -> list[T]:
        """What `act` returns for every chunk."""
        numbers = range(len(self._rows))
        return [*map(act, numbers)] if self._threads is None else [*self._threads.map(act, numbers)]

    def _remember(self, begun: Bools) -> None:
        if self.render_mode is None:
            return
        for rates, rate, new in zip(
            self._rates, self._joined(lambda chunk: chunk.now.delivered), begun, strict=True
        ):
            if new:
                rates.clear()
            rates.append(float(rate))

    def _reset_mask(self, mask: Any) -> Bools:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ConfigError(f"`reset_mask`={mask!r} must be an array of {self.num_envs} bools")
        if not mask.any():
            raise ConfigError("`reset_mask` has no True in it; name one job at least")
        return mask.copy()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environment is closed; make another")

    def _running(self) -> list[Episodes]:
        self._check_open()
        if not self._chunks:
            raise ResetNeeded("call `reset` first")
        return self._chunks


class _Threads(ThreadPoolExecutor):
    """Threads of their own for every copy of an environment."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._count = count

    def __reduce__(self) -> tuple[type[_Threads], tuple[int]]:
        return _Threads, (self._count,)


def _part(whole: Any, rows: slice) -> Any:
    """The observations at `rows`, views."""
    return {key: value[rows] for key, value in whole.items()} if isinstance(whole, dict) else whole[rows]
