"""`LivePipelineEnv`: a running pipeline as a Gymnasium environment, of the simulated one's spaces and rewards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from intune.envs import spaces
from intune.envs.actions import feasible
from intune.envs.jobs import Floats
from intune.envs.measure import widened
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.envs.one_pipeline import OnePipelineEnv
from intune.envs.settings import EnvSettings
from intune.envs.tunable import Tunable
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError, LoaderError

SETTINGS = ("observation", "action", "pool", "reward", "reference", "episode_steps", "stages")
"""Those of `EnvSettings` that mean something for a pipeline that is not drawn and never restarted."""

OBSERVER_OPTIONS = ("resources", "memory_base", "slots_per_cpu", "memory_bandwidth")


class LivePipelineEnv(OnePipelineEnv):
    """One pipeline that somebody else consumes, tuned while it runs.

    Each step gives slots through `Tunable.resize`, waits one interval and measures it. Nothing here touches the
    loop that consumes the pipeline: whatever is raised, is raised to who calls `step`. Once the pipeline is over
    (closed, or it raises `LoaderError`) the episode is terminated; ``info["over"]`` has the reason. Memory is the
    pipeline's own to keep within its budget, so no episode ends by running out of it.

    `reset` leaves the slots in force as they are, unless ``options["slots"]`` gives others, and waits for the
    first interval. Rewards are 0 until an interval shows which rate counts as 1: that of the first one that
    delivers anything, or the trainer's. `info` has ``rate``, ``memory``, ``moved`` and ``killed`` as the simulated
    environment, and ``sound``: whether the interval's measurement can be trusted.

    Args:
        tunable: the pipeline.
        interval: seconds between two decisions.
        wait: waits so many seconds; injected in tests, and where a tuner wants to be woken.
        clock: seconds, monotonic.
        render_mode: ``rgb_array``, ``ansi`` or None.
        **settings: those of `EnvSettings` named in `SETTINGS`, and of `Observer` in `OBSERVER_OPTIONS`.

    Raises:
        ConfigError: see `EnvSettings` and `Observer`.
    """

    def __init__(
        self,
        tunable: Tunable,
        *,
        interval: float = 5.0,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < math.inf:
            raise ConfigError(f"`interval`={interval!r} must be seconds above 0")
        for name in settings:
            if name not in (*SETTINGS, *OBSERVER_OPTIONS):
                known = ", ".join(("tunable", "interval", "render_mode", *SETTINGS, *OBSERVER_OPTIONS))
                raise ConfigError(f"unknown setting `{name}` of the live environment; known are {known}")
        chosen = EnvSettings.of(**{name: settings[name] for name in SETTINGS if name in settings})
        self.observer = Observer(
            tunable, clock=clock, **{name: settings[name] for name in OBSERVER_OPTIONS if name in settings}
        )
        self.interval = float(interval)
        self._names = tuple(tunable.stages)
        super().__init__(chosen, len(self._names), render_mode=render_mode)
        self._spec: EnvSpec | None = None
        self._wait = wait
        self._now: Measurement | None = None
        self._before: Measurement | None = None
        self._best: Floats = np.zeros(1)
        self._reference: float | None = None
        self._steps = 0
        self._moved = 0.0

    @property
    def measurement(self) -> Measurement:
        """See `OnePipelineEnv`."""
        return self._running()

    @property
    def spec(self) -> EnvSpec | None:
        """How this was made, as Gymnasium keeps it; copies of it are of the same running pipeline."""
        return self._spec

    @spec.setter
    def spec(self, made: EnvSpec | None) -> None:
        self._spec = None if made is None else replace(made, kwargs=_Shared(made.kwargs))

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Measure the first interval of an episode.

        Args:
            seed: of `np_random`; nothing else here is random that a seed could decide.
            options: ``slots`` (``[S]``): slots to begin with.

        Raises:
            ConfigError: unknown options, or values that make no sense.
            LoaderError: the pipeline is over.
            ClosedEnvironmentError: after `close`.
        """
        self._check_open()
        super().reset(seed=seed)
        slots = _slots_option(options, self.stages)
        self._over = False
        self._steps, self._moved = 0, 0.0
        self._before = None
        if slots is None:
            self.observer.skip()
        else:
            now = widened(self.observer.measure(), self.stages)
            given = feasible(now.present, now.slots, slots[None], now.slot_limit)
            self.observer.resize(self._allocation(given[0], None))
        self._wait(self.interval)
        self._measure()
        now = self._running()
        self._before = now
        self._best = now.delivered.copy()
        self._reference = self._judge(now)
        self._rates.clear()
        self._rates.append(float(now.delivered[0]))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Give slots and wait one interval.

        Raises:
            ConfigError: an action of the wrong shape, NaN, or a move that there is not.
            ResetNeeded: before `reset`, or when the episode is over.
            ClosedEnvironmentError: after `close`.
        """
        before = self._running()
        if self._over:
            raise ResetNeeded("`step` after the episode ended; call `reset` to begin another")
        wanted = spaces.wanted_slots(
            self.settings.action, np.asarray(action)[None], before.slots, pool=self.settings.pool
        )
        over: LoaderError | None = None
        try:
            self._moved = self._give(before, *wanted)
            self._wait(self.interval)
            self._measure()
        except LoaderError as error:
            over = error
        now = self._running()
        self._before = before
        self._best = np.maximum(self._best, now.delivered)
        self._steps += 1
        if self._reference is None:
            self._reference = self._judge(now)
        value = 0.0
        if over is None and self._reference is not None:
            reward = self.settings.reward(now, moved=np.array([self._moved]), reference=self._reference)
            value = float(np.nan_to_num(reward[0], posinf=0.0, neginf=0.0))
        terminated = over is not None
        truncated = not terminated and self._steps >= self.settings.episode_steps
        self._over = terminated or truncated
        self._rates.append(float(now.delivered[0]))
        info = self._info()
        if over is not None:
            info["over"] = str(over)
        return self._observation(), value, terminated, truncated, info

    def close(self) -> None:
        """Stop tuning. The pipeline keeps the slots it has, and goes on."""
        self._closed = True
        self._now = None

    # ---- inside ----------------------------------------------------------------------------------------------

    def _give(self, before: Measurement, slots: Floats, pool: Floats | None) -> float:
        """Slots added plus slots taken away; nothing is touched where nothing changes."""
        pooled = float(before.pool[0])
        limit = float(before.slot_limit[0])
        if pool is not None and np.rint(pool[0]) >= 1:
            size = float(np.clip(np.rint(pool[0]), 1, limit))
            if size != pooled:
                self.observer.resize(self._allocation(None, size))
            else:
                self.observer.skip()
            change = size - pooled if pooled else (size - before.slots) * before.present
            return float(np.abs(change).sum())
        kept = (slots == before.slots) | ~before.present
        fits = pooled or float(before.slots[before.present].sum()) <= limit
        if self.settings.action == "moves" and kept.all() and fits:
            # Of a shared pool too, keeping every stage as it is keeps the pool.
            self.observer.skip()
            return 0.0
        given = feasible(before.present, before.slots, slots, before.slot_limit)
        change = np.abs(given - before.slots)[before.present].sum()
        if change or pooled:
            self.observer.resize(self._allocation(given[0], None))
        else:
            self.observer.skip()
        return float(change)

    def _allocation(self, slots: Floats | None, pool: float | None) -> Allocation:
        if slots is None:
            return Allocation.shared(int(pool or 1), memory=self.observer.allocation.memory)
        counts = np.maximum(np.rint(slots[: len(self._names)]), 1).astype(int).tolist()
        return Allocation.per_stage(dict(zip(self._names, counts, strict=True)))

    def _measure(self) -> None:
        # A loader that is closed still tells what it counted.
        if getattr(self.observer.tunable, "closed", False):
            raise LoaderError("the pipeline was closed; make another, and an environment for it")
        self._now = widened(self.observer.measure(), self.stages)

    def _judge(self, now: Measurement) -> float | None:
        """Rows/s that count as 1; None where this interval does not say."""
        kind = self.settings.reference
        if not isinstance(kind, str):
            return float(kind)
        if kind == "none":
            return 1.0
        delivered, step = float(now.delivered[0]), float(now.step[0])
        if not delivered > 0:
            return None
        return 1.0 / step if kind == "trainer" and math.isfinite(step) and step > 0 else delivered

    def _observation(self) -> Any:
        given = spaces.observe(self.settings.observation, self._running(), self._before, self._best)
        return {key: value[0] for key, value in given.items()} if isinstance(given, dict) else given[0]

    def _info(self) -> dict[str, Any]:
        now = self._running()
        return {
            "rate": float(now.delivered[0]),
            "memory": float(now.memory_used[0] / now.memory_limit[0]),
            "moved": self._moved,
            "killed": bool(now.killed[0]),
            "sound": bool(now.sound()[0]),
        }

    def _running(self) -> Measurement:
        self._check_open()
        if self._now is None:
            raise ResetNeeded("call `reset` first")
        return self._now


class _Shared(dict[str, Any]):
    """Arguments that Gymnasium copies deeply whenever it shows them: a pipeline that runs is not copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return _Shared(self)


def _slots_option(options: Mapping[str, Any] | None, stages: int) -> Floats | None:
    options = options or {}
    for name in options:
        if name != "slots":
            raise ConfigError(f"unknown option `{name}` of `reset`; known is slots")
    if options.get("slots") is None:
        return None
    try:
        slots = np.asarray(options["slots"], dtype=np.float64)
    except (TypeError, ValueError):
        slots = np.full(1, np.nan)
    if slots.shape != (stages,) or not np.isfinite(slots).all() or slots.min() < 0:
        raise ConfigError(
            f"`slots`={options['slots']!r} of `reset` must be {stages} finite numbers of 0 or more"
        )
    return slots
