from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from intune.envs.jobs import Jobs
from intune.envs.live import LivePipelineEnv
from intune.envs.settings import EnvSettings
from intune.envs.simulated import SimulatedPipelineEnv
from intune.envs.simulated_tunable import SimulatedTunable
from intune.envs.vector import SimulatedPipelineVectorEnv
from intune.pipelines.errors import ConfigError


@pytest.mark.parametrize("name", ["episode_steps", "source_seed", "stages"])
@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array])
def test_whole_numbers_of_any_kind_are_taken_as_ints(name: str, kind: Any) -> None:
    value = getattr(EnvSettings.of(**{name: kind(5)}), name)
    assert value == 5
    assert type(value) is int


@pytest.mark.parametrize("name", ["episode_steps", "source_seed", "stages"])
@pytest.mark.parametrize("value", [True, np.True_, 5.0, np.float64(5.0), "5", -1, np.int64(-1), [5]])
def test_what_is_no_whole_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{name}`=.* must be a whole number, [01] or more"):
        EnvSettings.of(**{name: value})


@pytest.mark.parametrize("name", ["episode_steps", "source_seed"])
def test_numbers_that_are_needed_cannot_be_none(name: str) -> None:
    assert EnvSettings(stages=None).stages is None
    with pytest.raises(ConfigError, match=f"`{name}`=None"):
        EnvSettings.of(**{name: None})


@pytest.mark.parametrize("value", ["false", "true", 0, 1, None])
def test_a_pool_is_wanted_or_not(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`pool`=.* must be True or False"):
        EnvSettings(action="absolute", pool=value)


@pytest.mark.parametrize(
    ("env", "slip", "meant"),
    [
        (SimulatedPipelineEnv, "scenaro", "scenario"),
        (SimulatedPipelineEnv, "render", "render_mode"),
        (SimulatedPipelineVectorEnv, "scenaro", "scenario"),
        (SimulatedPipelineVectorEnv, "autoreset_mode", "autoreset"),
        (partial(LivePipelineEnv, SimulatedTunable(Jobs.of(stages=2))), "intervall", "interval"),
    ],
)
def test_whatever_was_meant_is_among_the_names_that_are_known(env: Any, slip: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting `{slip}` .*known are .*{meant}[, ]"):
        env(**{slip: "x"})
