"""`EnvSettings`: what a user may choose of an environment over simulated jobs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, Literal, get_args

from intune.envs.reward import Reward
from intune.envs.source import Split
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least

ObservationKind = Literal["features", "flat", "paper"]
ActionKind = Literal["moves", "absolute"]
Reference = Literal["first", "trainer", "none"]
OnKill = Literal["end", "restart"]


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """How jobs are observed, acted on and judged.

    Attributes:
        split: which jobs of the scenario: ``train``, ``validation`` or ``test``; no job is in two of them.
        source_seed: seed of the scenario's draws: job number 5 of one seed is another job than that of the next.
        observation: ``features`` (a dict, see `spaces.observation_space`), ``flat`` or ``paper``.
        action: ``moves`` (a choice of `actions.MOVES` for every stage) or ``absolute`` (slots of every stage).
        pool: with absolute actions, one more number: slots that all stages share instead, if above 0.
        reward: see `Reward`.
        reference: rows/s that count as 1 in the reward: those of the ``first`` interval (one slot a stage), the
            ``trainer``'s own rate, ``none`` (rows/s as they are), or a number.
        on_kill: a job that runs out of memory: the episode may ``end``, or the job ``restart``.
        restart_seconds: how long such a job stands still then.
        episode_steps: decisions in an episode.
        stages: width S of actions and observations where it shall be more than the scenario's, so that one agent
            fits several; None for the scenario's.

    Raises:
        ConfigError: a value that is not among those, or out of range.
    """

    split: Split = "train"
    source_seed: int = 0
    observation: ObservationKind = "features"
    action: ActionKind = "moves"
    pool: bool = False
    reward: Reward = field(default_factory=Reward)
    reference: Reference | float = "first"
    on_kill: OnKill = "end"
    restart_seconds: float = 60.0
    episode_steps: int = 64
    stages: int | None = None

    def __post_init__(self) -> None:
        _one_of("split", self.split, Split)
        _one_of("observation", self.observation, ObservationKind)
        _one_of("action", self.action, ActionKind)
        _one_of("on_kill", self.on_kill, OnKill)
        if isinstance(self.reference, str):
            _one_of("reference", self.reference, Reference)
        else:
            _number("reference", self.reference, 0.0, open_low=True)
        if not isinstance(self.reward, Reward):
            raise ConfigError(f"`reward`={self.reward!r} must be a Reward")
        if not isinstance(self.pool, bool):
            raise ConfigError(f"`pool`={self.pool!r} must be True or False")
        if self.pool and self.action != "absolute":
            raise ConfigError('`pool`=True needs `action`="absolute": moves are those of single stages')
        _number("restart_seconds", self.restart_seconds, 0.0)
        for name, least in (("episode_steps", 1), ("source_seed", 0), ("stages", 1)):
            value = getattr(self, name)
            if name != "stages" or value is not None:
                object.__setattr__(self, name, at_least(name, value, least))

    @classmethod
    def of(cls, beside: Sequence[str] = (), /, **values: Any) -> EnvSettings:
        """Settings from keyword arguments, as `gymnasium.make` passes them.

        Args:
            beside: what else the environment takes, for an error to name.
            **values: the settings.

        Raises:
            ConfigError: an unknown name, or as the class.
        """
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"unknown setting `{name}` of the environment; known are {', '.join([*beside, *known])}"
                )
        return cls(**values)


def _one_of(name: str, value: Any, kind: Any) -> None:
    if value not in get_args(kind):
        allowed = ", ".join(repr(each) for each in get_args(kind))
        raise ConfigError(f"`{name}`={value!r} must be one of {allowed}")


def _number(name: str, value: Any, low: float, *, open_low: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not good or value < low or (open_low and value == low):
        raise ConfigError(
            f"`{name}`={value!r} must be {'above' if open_low else 'at least'} {low:g} and finite"
        )
