"""`SimulatedPipelineVectorEnv`: many simulated jobs at once as a Gymnasium vector environment. No loop over jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium import logger
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from intune.envs import render, spaces
from intune.envs.episodes import Episodes
from intune.envs.job_sources import first_job, source_of
from intune.envs.jobs import Bools, Floats, Ints
from intune.envs.measurement import Measurement
from intune.envs.settings import EnvSettings
from intune.envs.simulated import HISTORY, RENDER_MODES, check_render_mode, reset_options, width_of
from intune.pipelines.errors import ConfigError

CHUNK = 2048
"""Jobs computed together. Chosen by `benchmarks/envs.py`: their arrays stay in a core's cache, and the calls of NumPy,
which threads take turns at, are few for each job."""

RESERVE = 128
"""Episodes begun at once where fewer end, and kept for those that end next: beginning one alone costs nearly as much
as many."""

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
        for name, value in (("num_envs", num_envs), ("chunk", chunk), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}`={value!r} must be a whole number of 1 or more")
        if autoreset not in AUTORESET:
            raise ConfigError(f"`autoreset`={autoreset!r} must be one of {', '.join(map(repr, AUTORESET))}")
        self.settings = EnvSettings.of(**settings)
        self._source, width = source_of(scenario, self.settings)
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
        self._rows = [slice(at, min(at + chunk, num_envs)) for at in range(0, num_envs, chunk)]
        self._chunks: list[Episodes] = []
        self._threads = ThreadPoolExecutor(threads) if threads > 1 and len(self._rows) > 1 else None
        self._next: int | None = None
        self._reserve: Episodes | None = None
        self._used = 0  # of the reserve
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
        if seed is not None or self._next is None:
            self._next = first_job(int(self.np_random.integers(2**32)) if seed is None else seed)
            self._reserve = None
        rows = np.flatnonzero(mask)
        ids, slots = reset_options(given, self._numbers(len(rows)), self.stages)
        self._ended[rows] = False
        if len(rows) == self.num_envs:
            self._chunks = [
                self._begin(ids[part], slots[part] if slots is not None else None) for part in self._rows
            ]
            self._rates = [deque(maxlen=HISTORY) for _ in range(self.num_envs)] if self.render_mode else []
        else:
            self._running()
            self._adopt(rows, self._begin(ids, slots), np.arange(len(rows)))
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
        chunks = self._running()
        given = np.asarray(actions)
        if given.shape != self.action_space.shape:
            raise ConfigError(f"`action` has shape {given.shape}, but {self.action_space.shape} is needed")
        self._each(lambda at: chunks[at].step(given[self._rows[at]]))
        rewards = self._joined(lambda chunk: chunk.reward)
        terminated = self._joined(lambda chunk: chunk.terminated)
        truncated = self._joined(lambda chunk: chunk.truncated)
        over = terminated | truncated
        again = self._ended.copy()
        infos: dict[str, Any] = {}
        if self._same_step:
            if over.any():
                infos = self._final(over)
                self._restart(over)
        else:
            if again.any():
                self._restart(again)
                rewards[again], terminated[again], truncated[again] = 0.0, False, False
            self._ended = over & ~again
        self._remember(over if self._same_step else again)
        return self._observation(), rewards, terminated, truncated, {**self._infos(None), **infos}

    def action_masks(self) -> NDArray[np.bool_]:
        """``[N, S x 5]``: see `SimulatedPipelineEnv.action_masks`.

        Raises:
            ConfigError: with absolute actions, which have none.
            ResetNeeded: before `reset`.
        """
        if self.settings.action != "moves":
            raise ConfigError('`action_masks` needs `action`="moves"')
        parts = [
            spaces.action_masks(each.now.present, each.now.slots, each.limit) for each in self._running()
        ]
        return np.concatenate(parts).reshape(self.num_envs, -1)

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
        draw = render.picture if self.render_mode == "rgb_array" else render.text
        now = self.measurement
        return tuple(draw(now.take(slice(i, i + 1)), rates) for i, rates in enumerate(self._rates))

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads; `reset` and `step` raise from now on."""
        self._chunks = []
        if self._threads is not None:
            self._threads.shutdown()

    def _begin(self, ids: Ints, slots: Floats | None = None) -> Episodes:
        return Episodes(self._source, self.settings, ids, stages=self.stages, slots=slots)

    def _numbers(self, count: int) -> Ints:
        """The jobs whose turn it is."""
        assert self._next is not None
        if self._reserve is not None:  # not handed out yet
            self._next -= len(self._reserve) - self._used
            self._reserve = None
        self._next += count
        return np.arange(self._next - count, self._next)

    def _restart(self, which: Bools) -> None:
        """Begin the next episodes of the jobs where `which`."""
        rows = np.flatnonzero(which)
        while rows.size:
            left = len(self._reserve) - self._used if self._reserve is not None else 0
            if not left and rows.size >= RESERVE:
                self._begin_in(rows)
                return
            if self._reserve is None or not left:
                self._reserve = None
                self._reserve, self._used, left = self._begin(self._numbers(RESERVE)), 0, RESERVE
            count = min(rows.size, left)
            self._adopt(rows[:count], self._reserve, np.arange(self._used, self._used + count))
            self._used += count
            rows = rows[count:]

    def _begin_in(self, rows: Ints) -> None:
        """Begin the next episodes in `rows` (ascending), each chunk's by itself."""
        ids = self._numbers(len(rows))

        def begin(at: int) -> None:
            part, chunk = self._rows[at], self._chunks[at]
            first, last = np.searchsorted(rows, (part.start, part.stop))
            if last > first:
                fresh = self._begin(ids[first:last])
                if len(fresh) == len(chunk):
                    self._chunks[at] = fresh
                else:
                    chunk.adopt(rows[first:last] - part.start, fresh, slice(None))

        self._each(begin)

    def _adopt(self, rows: Ints, fresh: Episodes, chosen: Ints) -> None:
        """Put the episodes of `fresh` at `chosen` into `rows` (ascending)."""
        for part, chunk in zip(self._rows, self._chunks, strict=True):
            first, last = np.searchsorted(rows, (part.start, part.stop))
            if last > first:
                chunk.adopt(rows[first:last] - part.start, fresh, chosen[first:last])

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

    def _observation(self) -> Any:
        whole = spaces.empty_observation(self.settings.observation, self.num_envs, self.stages)

        def fill(at: int) -> None:
            rows = self._rows[at]
            part = (
                {key: value[rows] for key, value in whole.items()} if isinstance(whole, dict) else whole[rows]
            )
            self._chunks[at].observe(out=part)

        self._each(fill)
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

    def _each(self, act: Callable[[int], None]) -> None:
        """`act` for every chunk."""
        if self._threads is None:
            for at in range(len(self._chunks)):
                act(at)
        else:
            for _ in self._threads.map(act, range(len(self._chunks))):
                pass

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
