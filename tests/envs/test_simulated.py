from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

import intune.envs  # noqa: F401 - registers the environments
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.simulated import SimulatedPipelineEnv
from intune.envs.wrappers import DiscreteMoves
from intune.pipelines.errors import ConfigError

ID = "intune/SimulatedPipeline-v0"


def make(**settings: Any) -> SimulatedPipelineEnv:
    jobs = Jobs.of(
        stages=[4, 2], jobs=2, cpu=1e-5, wait=1e-5, noise=0.1, slot_bytes=1e9, memory=12e9, cpus=16, step=1e-7
    )
    return SimulatedPipelineEnv(**({"scenario": jobs} | settings))


@pytest.mark.parametrize("family", ["paper", "multi-node", "elastic", "wide"])
def test_gymnasiums_checks_pass(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ID, scenario=family).unwrapped)


@pytest.mark.parametrize("settings", [{"observation": "flat"}, {"observation": "paper"}])
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_gymnasiums_checks_pass_for_other_observations(settings: dict[str, Any], mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ID, scenario="paper", render_mode=mode, **settings).unwrapped)


def test_gymnasiums_checks_pass_for_absolute_actions() -> None:
    # Slots are numbers from 0 to thousands, not normalised: that is what the form is for.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(gym.make(ID, scenario="paper", action="absolute", pool=True).unwrapped)


@pytest.mark.parametrize("observation", ["features", "flat", "paper"])
def test_stable_baselines_checks_pass(observation: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A table of stages is neither an image nor a vector; its policies flatten it.
        warnings.filterwarnings("ignore", message=".*unconventional shape.*")
        checker.check_env(gym.make(ID, scenario="paper", observation=observation).unwrapped)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_stable_baselines_ppo_trains() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(ID, n_envs=2, seed=0, env_kwargs={"scenario": "paper", "episode_steps": 16})
    model = sb3.PPO("MultiInputPolicy", env, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu")
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(256)
    assert model.num_timesteps >= 256
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.usefixtures("one_thread")
def test_stable_baselines_dqn_trains_on_discrete_moves() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = DiscreteMoves(gym.make(ID, scenario="paper", observation="flat", episode_steps=16))
    model = sb3.DQN(
        "MlpPolicy", env, learning_starts=50, buffer_size=1000, train_freq=4, seed=0, device="cpu"
    )
    before = [value.clone() for value in model.q_net.parameters()]
    model.learn(300)
    assert any((old != new).any() for old, new in zip(before, model.q_net.parameters(), strict=True))


def test_a_step_does_what_it_says() -> None:
    jobs = Jobs.of(
        stages=2, cpu=[[1e-3, 2e-3]], step=1e-9, slot_bytes=1e8, memory=1e10, base_bytes=1e9, cpus=64
    )
    env = SimulatedPipelineEnv(jobs)
    _, info = env.reset(seed=0)
    assert info["rate"] == pytest.approx(500.0)
    _, reward, terminated, truncated, info = env.step([2, 3])
    assert info["rate"] == pytest.approx(1000.0)
    assert info["moved"] == 1
    used = 1e9 + 3e8 + env.measurement.memory_queued[0]
    assert info["memory"] == pytest.approx(used / 1e10)
    # After the paper, and relative to the first interval: twice as many rows, times the free share of memory.
    assert reward == pytest.approx(2.0 * (1 - used / 1e10))
    assert (terminated, truncated) == (False, False)


@pytest.mark.parametrize(
    ("reference", "rate"), [("first", 1.0), ("none", 500.0), ("trainer", 0.5), (250.0, 2.0)]
)
def test_rewards_are_relative_to_what_is_chosen(reference: Any, rate: float) -> None:
    env = SimulatedPipelineEnv(Jobs.of(stages=1, cpu=2e-3, step=1e-3, cpus=64), reference=reference)
    env.reset(seed=0)
    assert env.step([2])[1] == pytest.approx(rate)


def test_episodes_end_after_their_steps_or_out_of_memory() -> None:
    env = make(episode_steps=3)
    env.reset(seed=0)
    ends = [env.step([2, 2, 2, 2])[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step([4, 4, 4, 4])
    assert (terminated, truncated, info["killed"]) == (True, False, True)
    assert reward == -1.0


def test_a_job_that_dies_of_the_slots_it_begins_with_ends_at_the_first_decision() -> None:
    job = Jobs.of(stages=2, cpu=1e-3, slot_bytes=1e9, memory=10e9, cpus=64)
    for settings in ({"observation": "flat"}, {"action": "absolute", "pool": True}):
        env = SimulatedPipelineEnv(job, **settings)
        _, info = env.reset(seed=0, options={"slots": [8, 8]})
        assert info["killed"]
        action = [2, 2] if "pool" not in settings else np.array([1, 1, 0], dtype=np.float32)
        assert env.step(action)[2:4] == (True, False)
        env.reset(seed=0, options={"slots": [2, 2]})
        assert env.step(action)[2:4] == (False, False)


def test_a_job_out_of_memory_may_begin_again_instead() -> None:
    env = make(on_kill="restart", restart_seconds=7.0, episode_steps=4)
    env.reset(seed=0)
    rates = []
    for _ in range(4):
        _, _, terminated, truncated, info = env.step([4, 4, 4, 4] if not rates else [2, 2, 2, 2])
        rates.append(info["rate"])
        assert not terminated
    assert truncated
    # Intervals of 5 s: killed, 2 s into the next-but-one still down.
    assert rates[:2] == [0, 0]
    assert 0 < rates[2] < rates[3]


def test_nothing_runs_before_a_reset_after_an_end_or_when_closed() -> None:
    env = make(episode_steps=1)
    for call in (lambda: env.step([2, 2, 2, 2]), env.action_masks, lambda: env.measurement):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    env.step([2, 2, 2, 2])
    with pytest.raises(ResetNeeded, match="ended"):
        env.step([2, 2, 2, 2])
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.step([2, 2, 2, 2])
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


def test_episodes_bring_other_jobs_and_a_seed_brings_them_again() -> None:
    env = SimulatedPipelineEnv("paper", observation="flat")
    first = [env.reset(seed=4), env.reset(), env.reset()]
    again = [env.reset(seed=4), env.reset(), env.reset()]
    other = env.reset(seed=5)
    for (one, info), (two, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
        assert info == same
    assert len({info["job"] for _, info in [*first, other]}) == 4


def test_unseeded_environments_differ() -> None:
    jobs = {SimulatedPipelineEnv("paper").reset()[1]["job"] for _ in range(3)}
    assert len(jobs) == 3


def test_splits_bring_different_jobs() -> None:
    seen = [SimulatedPipelineEnv("paper", split=split, observation="flat").reset(seed=0)[0] for split in
            ("train", "validation", "test")]  # fmt: skip
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_a_scenario_may_be_a_name_a_file_or_itself(tmp_path: Any) -> None:
    scenario = Scenario.load("wide")
    path = tmp_path / "mine.toml"
    scenario.save(path)
    seen = [
        SimulatedPipelineEnv(each, observation="flat").reset(seed=0)[0]
        for each in ("wide", scenario, path, str(path))
    ]
    for other in seen[1:]:
        np.testing.assert_array_equal(seen[0], other)


def test_one_agent_fits_several_families() -> None:
    spaces = {
        repr(SimulatedPipelineEnv(family, stages=8).observation_space)
        for family in ("paper", "wide", "multi-node")
    }
    assert len(spaces) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speed": 1}, ["speed", "unknown", "episode_steps"]),
        ({"scenario": 3}, ["scenario", "3"]),
        ({"observation": "pixels"}, ["observation", "pixels", "flat"]),
        ({"action": "wish"}, ["action", "wish", "moves"]),
        ({"pool": True}, ["pool", "absolute"]),
        ({"reward": 1.0}, ["reward", "1.0"]),
        ({"reference": "best"}, ["reference", "best", "first"]),
        ({"reference": 0.0}, ["reference", "0.0", "above 0"]),
        ({"reference": np.nan}, ["reference", "nan"]),
        ({"on_kill": "ignore"}, ["on_kill", "ignore", "restart"]),
        ({"restart_seconds": -1.0}, ["restart_seconds", "-1.0"]),
        ({"episode_steps": 0}, ["episode_steps", "0"]),
        ({"episode_steps": 2.5}, ["episode_steps", "2.5"]),
        ({"stages": 3}, ["stages", "3", "4 or more"]),
        ({"split": "all"}, ["split", "all", "train"]),
        ({"source_seed": -1}, ["source_seed", "-1"]),
        ({"render_mode": "human"}, ["render_mode", "human", "ansi"]),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make(**settings)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([2, 2], ["action", "(1, 2)", "(1, 4)"]),
        (3, ["action", "(1,)"]),
        ([2, 2, 2, 9], ["9", "stage 3", "0 to 4"]),
        ([np.nan] * 4, ["action", "whole"]),
        (None, ["action"]),
    ],
)
def test_bad_actions_are_named_and_change_nothing(action: Any, words: list[str]) -> None:
    env, other = make(), make()
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ConfigError) as error:
        env.step(action)
    for word in words:
        assert word in str(error.value)
    assert env.step([3, 3, 3, 3])[1] == other.step([3, 3, 3, 3])[1]


def test_masks_are_laid_out_as_masked_learners_read_them() -> None:
    env = make()
    env.reset(seed=0, options={"job": 1, "slots": [3, 7, 1, 1]})
    masks = env.action_masks()
    assert masks.shape == (20,)
    assert masks.reshape(4, 5).tolist() == [
        [False, True, True, True, True],
        [True, True, True, True, True],
        [False, False, True, False, False],
        [False, False, True, False, False],
    ]
    with pytest.raises(ConfigError, match="moves"):
        make(action="absolute").action_masks()


def test_discrete_moves_change_one_stage_at_a_time() -> None:
    env = DiscreteMoves(make(stages=4))
    assert env.action_space == gym.spaces.Discrete(17)
    assert env.action(0).tolist() == [2, 2, 2, 2]
    assert env.action(1).tolist() == [0, 2, 2, 2]
    assert env.action(4).tolist() == [4, 2, 2, 2]
    assert env.action(np.int64(16)).tolist() == [2, 2, 2, 4]
    env.reset(seed=0, options={"job": 0, "slots": [3, 1, 1, 1]})
    masks = env.action_masks()
    assert masks[:9].tolist() == [True, False, True, True, True, False, False, True, True]
    for wrong in (17, -1, 1.5, None):
        with pytest.raises(ConfigError, match="0 to 16"):
            env.action(wrong)
    with pytest.raises(ConfigError, match="moves"):
        DiscreteMoves(make(action="absolute"))


def test_importing_the_environments_is_enough_to_make_them_by_name() -> None:
    spec = gym.spec(ID)
    assert spec.vector_entry_point is not None
    assert not spec.nondeterministic


def test_what_is_wrapped_can_be_made_again_from_its_spec() -> None:
    env = DiscreteMoves(gym.make(ID, scenario="wide", observation="flat"))
    assert env.spec is not None
    again = env.spec.make()
    assert again.action_space == env.action_space
    first, other = (each.reset(seed=1)[0] for each in (env, again))
    np.testing.assert_array_equal(first, other)
