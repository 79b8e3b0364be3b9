"""All agents by name. A line a name; modules are imported when one is made."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from intune.agents.base import Agent
from intune.pipelines.errors import ConfigError

GUARDED = "+guard"
"""Added to a name, it puts the guard around the agent: ``ds2+guard``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an agent is.

    Attributes:
        where: ``module:class``.
        summary: one line for lists.
    """

    where: str
    summary: str


ENTRIES: dict[str, Entry] = {
    "static": Entry("intune.agents.static:Static", "one slot a stage, or a given allocation"),
    "shared": Entry("intune.agents.shared:Shared", "one pool of as many slots as CPUs: the untuned default"),
    "even": Entry("intune.agents.even:Even", "CPUs spread evenly over the stages at the start"),
    "proportional": Entry("intune.agents.proportional:Proportional", "slots in proportion to measured cost"),
    "heuristic-adaptive": Entry(
        "intune.agents.heuristic_adaptive:HeuristicAdaptive",
        "what an expert would choose by hand, redone at each resize",
    ),
    "bottleneck": Entry("intune.agents.bottleneck:Bottleneck", "one more slot for the slowest stage"),
    "thresholds": Entry("intune.agents.thresholds:Thresholds", "Ray Data's rule: up at 1.75, down at 0.5"),
    "autotune": Entry(
        "intune.agents.autotune:Autotune", "tf.data's AUTOTUNE: model, climb, clock and budgets"
    ),
    "autotune-adaptive": Entry(
        "intune.agents.autotune_adaptive:AutotuneAdaptive", "AUTOTUNE, restarted at each resize"
    ),
    "autotune-pool": Entry(
        "intune.agents.autotune_adaptive:AutotunePool",
        "the same, its workers in one pool where slots are too few",
    ),
    "ds2": Entry("intune.agents.ds2:DS2", "true rates give all slots at once (OSDI'18)"),
    "planner": Entry("intune.agents.planner:Planner", "learns on line, then solves for the best that fits"),
    "dqn": Entry("intune.agents.dqn:DQN", "deep Q-learning over rehearsed allocations; the default"),
    "dqn-paper": Entry(
        "intune.agents.dqn_paper:DQNPaper", "after the paper: six numbers, increments, an MLP"
    ),
    "qlearning": Entry("intune.agents.qlearning:QLearning", "tabular Q-learning over coarse bins"),
    "oracle": Entry("intune.agents.oracle:Oracle", "the best there is; for simulated jobs only"),
}


def names() -> tuple[str, ...]:
    """Every agent that can be made."""
    return tuple(ENTRIES)


def summary(name: str) -> str:
    """What an agent does, in one line.

    Raises:
        ConfigError: there is no such agent.
    """
    return _entry(name.removesuffix(GUARDED)).summary


def check_real(name: str, argument: str) -> None:
    """Whether a real job can have an agent of this name.

    Args:
        name: of the agent, which need not be one of `names()`.
        argument: what it was given as, for the error.

    Raises:
        ConfigError: it decides for simulated jobs alone.
    """
    if name.removesuffix(GUARDED) == "oracle":
        raise ConfigError(f"`{argument}`={name!r} knows a simulator's own parameters; a real job has none")


def make(name: str, **options: Any) -> Agent:
    """An agent by name.

    Args:
        name: one of `names()`; with ``+guard`` at its end, under the guard.
        **options: of the agent's class.

    Raises:
        ConfigError: no such agent, or an option that it does not have or that cannot be such a value.
    """
    plain = name.removesuffix(GUARDED)
    module, _, attribute = _entry(plain).where.partition(":")
    made: type[Agent] = getattr(importlib.import_module(module), attribute)
    _check_options(plain, made, options)
    agent = made(**options)
    if name == plain:
        return agent
    guard: Any = importlib.import_module("intune.agents.guard")
    guarded: Agent = guard.Guard(agent)
    return guarded


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise ConfigError(f"no agent {name!r}; there are {', '.join(ENTRIES)}{_close(name, ENTRIES)}")
    return ENTRIES[name]


def _check_options(name: str, made: type[Agent], options: dict[str, Any]) -> None:
    taken = inspect.signature(made).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for option in options:
        if option not in taken:
            has = f"it has {', '.join(taken)}" if taken else "it has none"
            raise ConfigError(f"agent {name!r} has no option `{option}`; {has}{_close(option, taken)}")
    hints = get_type_hints(made.__init__) if options else {}
    for option, value in options.items():
        if option in hints and not _is_of(value, hints[option]):
            wanted = inspect.formatannotation(taken[option].annotation).strip("'")
            raise ConfigError(f"option `{option}`={value!r} of agent {name!r} must be of type {wanted}")
        if option == "seed" and value < 0:
            raise ConfigError(f"option `seed`={value!r} of agent {name!r} must be 0 or more")


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value is of a type as constructors have them; what is in containers, or literal, they check."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts]
    if Literal in kinds:
        return True
    if isinstance(value, bool):
        return bool in kinds
    # NumPy's numbers are numbers too.
    return isinstance(value, tuple({int: Integral, float: Real}.get(kind, kind) for kind in kinds))


def _close(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
