from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from intune.agents import registry
from intune.agents.base import Agent
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


@pytest.mark.parametrize("name", registry.names())
def test_every_name_leads_to_an_agent_that_knows_its_name(name: str) -> None:
    module, _, attribute = registry.ENTRIES[name].where.partition(":")
    made = getattr(import_module(module), attribute)
    assert issubclass(made, Agent)
    assert made.name == name
    assert registry.summary(name)


@pytest.mark.parametrize(
    "pool",
    [
        {"waiting": 0.0},
        {"busy": 4.0, "rate": 500.0, "queue_fill": 0.1, "starved": 0.6},
        {"slots": 12.0, "pool": 12.0, "busy": 4.0, "slot_limit": 12.0},
    ],
    ids=["the trainer is fed", "stages are half at work", "no slot is left"],
)
@pytest.mark.parametrize("name", [name for name in registry.names() if name != "oracle"])
def test_who_says_keep_of_a_pool_keeps_it(
    name: str, pool: dict[str, Any], measurement: Callable[..., Measurement]
) -> None:
    agent = registry.make(name)
    agent.start(1, 3)
    measured = measurement(**{"slots": 6.0, "pool": 6.0, "slot_limit": 64.0, **pool})
    decision = agent.decide(measured, ("load", "batch", "transform"))
    if decision.reason.startswith("keep: "):
        assert decision.allocation is None


def test_make_passes_options_on() -> None:
    agent = registry.make("shared", per_cpu=2.0)
    assert agent.name == "shared"


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no agent 'propotional'; .* did you mean 'proportional'\?"):
        registry.make("propotional")


def test_an_unknown_option_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"has no option `steps`; it has step, enough; did you mean 'step'\?"
    ):
        registry.make("bottleneck", steps=2)


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("dqn", "weights", 3, r"Weights \| str \| Path \| None"),
        ("qlearning", "table", 3, r"QTable \| None"),
        ("thresholds", "up", "a", "float"),
        ("thresholds+guard", "up", True, "float"),
        ("bottleneck", "step", 1.5, "int"),
        ("even", "follow", "no", "bool"),
        ("static", "slots", 3, r"Sequence\[int\] \| Mapping\[str, int\] \| None"),
    ],
)
def test_an_option_of_another_type_is_named(name: str, option: str, value: Any, wanted: str) -> None:
    agent = name.removesuffix(registry.GUARDED)
    with pytest.raises(
        ConfigError, match=f"`{option}`={value!r} of agent '{agent}' must be of type {wanted}$"
    ):
        registry.make(name, **{option: value})


@pytest.mark.parametrize("name", ["dqn", "qlearning", "dqn-paper"])
def test_a_seed_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`seed`=-1 of agent '{name}' must be 0 or more"):
        registry.make(name, seed=-1)


@pytest.mark.parametrize("epsilon", [-0.1, 2.0, float("nan")])
def test_a_share_of_chance_is_a_share(epsilon: float) -> None:
    for name in ("qlearning", "dqn-paper"):
        with pytest.raises(ConfigError, match=f"`epsilon`={epsilon!r} must be from 0 to 1"):
            registry.make(name, epsilon=epsilon)


def test_numpys_numbers_are_options_too() -> None:
    made: Any = registry.make("bottleneck", step=np.int64(2), enough=np.float32(0.5))
    assert (made._step, made._enough) == (2, 0.5)


def test_an_agent_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match="it has none"):
        registry.make("proportional", anything=1)


def test_the_registry_imports_no_agent_before_it_is_made() -> None:
    import subprocess

    script = "import sys, intune.agents.registry; print([m for m in sys.modules if 'agents.ds2' in m or m == 'torch'])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
