from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode

import intune.envs  # noqa: F401 - registers the environments
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.simulated import SimulatedPipelineEnv
from intune.envs.vector import SimulatedPipelineVectorEnv
from intune.pipelines.errors import ConfigError

ID = "intune/SimulatedPipeline-v0"


def eventful() -> Jobs:
    """Jobs of different lengths in which everything happens: noise, losses, kills, resizes, pools, several nodes."""
    return Jobs.of(
        stages=[5, 3, 1],
        jobs=3,
        cpu=1e-6,
        wait=[2e-6, 0.0, 1e-6],
        contention=0.02,
        coherence=1e-4,
        slot_bytes=1e9,
        storage_bytes=50.0,
        storage_bandwidth=2e8,
        memory=[[16e9, 8e9], [9e9, 9e9], [40e9, 0.0]],
        cpus=[[8, 4], [4, 4], [6, 0]],
        nic=1e9,
        noise=0.2,
        memory_noise=0.3,
        measurement_noise=0.5,
        hiccup_rate=0.02,
        hiccup_factor=4.0,
        loss_rate=0.02,
        loss_seconds=10.0,
        resize_delay=2.0,
        oversubscription=0.2,
        event_time=[[20.0, 45.0]],
        event_cpus=[[0.5, 1.5]],
        event_memory=[[0.6, 1.2]],
    )


def same(left: Any, right: Any) -> None:
    if isinstance(left, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif isinstance(left, dict):
        assert set(left) == set(right)
        for key, value in left.items():
            same(value, right[key])
    elif isinstance(left, np.ndarray) and left.dtype == object:
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif left is None:
        assert right is None
    elif not (np.abs(np.subtract(left, right, dtype=float)) <= 1e-6 + 1e-6 * np.abs(right)).all():
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)  # which says where; slower by far


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize(
    "settings",
    [
        {"on_kill": "end"},
        {"on_kill": "restart", "restart_seconds": 12.0, "observation": "flat", "reference": "trainer"},
        {"action": "absolute", "pool": True, "observation": "paper", "reference": "none"},
        {"stages": 7, "reference": 1e5},
    ],
    ids=["moves", "restart", "absolute", "wider"],
)
def test_vectorised_and_single_environments_give_the_same_trajectories(
    autoreset: str, settings: dict[str, Any]
) -> None:
    follow(eventful(), autoreset, settings)


@pytest.mark.parametrize("family", Scenario.names())
def test_they_do_in_every_family(family: str) -> None:
    follow(family, "same_step", {"on_kill": "restart"}, steps=4, count=3)


def follow(family: Any, autoreset: str, settings: dict[str, Any], steps: int = 5, count: int = 5) -> None:
    """Step through three episodes; run every job on its own as well, by its number, with the same actions."""
    made = SimulatedPipelineVectorEnv(
        count, family, autoreset=autoreset, chunk=2, episode_steps=steps, **settings
    )
    singles = [SimulatedPipelineEnv(family, episode_steps=steps, **settings) for _ in range(count)]
    observed, infos = made.reset(seed=3)
    for row, single in enumerate(singles):
        same(
            single.reset(options={"job": int(infos["job"][row])}),
            (row_of(observed, row), info_of(infos, row)),
        )
    made.action_space.seed(1)
    over = np.zeros(count, dtype=bool)
    ended, jobs = 0, set(infos["job"].tolist())
    for _ in range(3 * steps):
        action = made.action_space.sample()
        if settings.get("action") == "absolute":
            action = np.round(action / 500.0)
        observed, rewards, terminated, truncated, infos = made.step(action)
        for row, single in enumerate(singles):
            job = {"job": int(infos["job"][row])}
            now = row_of(observed, row), info_of(infos, row)
            if autoreset == "next_step" and over[row]:
                same(single.reset(options=job), now)
                assert (rewards[row], terminated[row], truncated[row]) == (0.0, False, False)
                continue
            seen, *judged, info = single.step(action[row])
            same(tuple(judged), (rewards[row], terminated[row], truncated[row]))
            if autoreset == "same_step" and (terminated[row] or truncated[row]):
                same((seen, info), (infos["final_obs"][row], info_of(infos["final_info"], row)))
                seen, info = single.reset(options=job)
            same((seen, info), now)
        over = (terminated | truncated) & ~(over & (autoreset == "next_step"))
        ended += int(over.sum())
        jobs |= set(infos["job"].tolist())
    assert ended >= 2 * count
    begun = ended if autoreset == "same_step" else ended - int(over.sum())
    assert len(jobs) == count + begun


def row_of(observed: Any, row: int) -> Any:
    return (
        {key: value[row] for key, value in observed.items()} if isinstance(observed, dict) else observed[row]
    )


def info_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    named = ("job", "rate", "memory", "moved", "killed")
    assert all(infos[f"_{name}"][row] for name in named)
    return {name: infos[name][row] for name in named}


def test_one_of_a_vector_is_a_single_environment() -> None:
    made = SimulatedPipelineVectorEnv(1, eventful(), autoreset="same_step", episode_steps=4)
    single = SimulatedPipelineEnv(eventful(), episode_steps=4)
    observed, _ = made.reset(seed=5)
    same(row_of(observed, 0), single.reset(seed=5)[0])
    for _ in range(20):
        action = made.action_space.sample()
        observed, _, terminated, truncated, _ = made.step(action)
        seen, *_ = single.step(action[0])
        if terminated[0] or truncated[0]:
            seen, _ = single.reset()
        same(row_of(observed, 0), seen)


def test_threads_change_nothing() -> None:
    one = SimulatedPipelineVectorEnv(40, eventful(), chunk=40)
    two = SimulatedPipelineVectorEnv(40, eventful(), chunk=8, threads=2)
    same(one.reset(seed=1), two.reset(seed=1))
    one.action_space.seed(0)
    for _ in range(10):
        action = one.action_space.sample()
        same(one.step(action), two.step(action))
    one.close()
    two.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_how_many_begin_together_changes_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for reserve in (1, 3, 1000):
        monkeypatch.setattr("intune.envs.succession.RESERVE", reserve)
        env = SimulatedPipelineVectorEnv(24, "memory-tight", chunk=8, threads=threads, episode_steps=4)
        env.action_space.seed(0)
        runs = [env.reset(seed=1)]
        # Whole chunks end at once by their length, others where memory ran out.
        runs += [env.step(env.action_space.sample()) for _ in range(14)]
        made.append(runs)
        env.close()
    for one, other, third in zip(*made, strict=True):
        same(one, other)
        same(one, third)
    jobs = np.concatenate([run[-1]["job"] for run in made[0]])
    assert len(np.unique(jobs)) > 3 * 24


def test_a_bad_action_changes_nothing() -> None:
    env, other = (SimulatedPipelineVectorEnv(12, eventful(), chunk=4, episode_steps=3) for _ in range(2))
    same(env.reset(seed=1), other.reset(seed=1))
    env.action_space.seed(0)
    for _ in range(8):
        action = env.action_space.sample()
        bad = action.copy()
        bad[9, 2] = 5
        with pytest.raises(ConfigError, match="for stage 2 of job 9"):
            env.step(bad)
        same(env.step(action), other.step(action))


def test_a_seed_repeats_everything() -> None:
    runs = []
    for _ in range(2):
        env = gym.make_vec(ID, num_envs=4, scenario=eventful(), episode_steps=5)
        env.action_space.seed(0)
        seen: list[Any] = [env.reset(seed=11)]
        seen += [env.step(env.action_space.sample()) for _ in range(12)]
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        for left, right in zip(one, other, strict=True):
            same(left, right)


def test_make_vec_makes_the_vectorised_one_and_states_its_autoreset_mode() -> None:
    env = gym.make_vec(ID, num_envs=2, scenario=eventful())
    assert isinstance(env.unwrapped, SimulatedPipelineVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    other = gym.make_vec(ID, num_envs=2, scenario=eventful(), autoreset="same_step")
    assert other.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=0)
    assert observations in env.observation_space


def test_what_was_returned_does_not_change_afterwards() -> None:
    env = SimulatedPipelineVectorEnv(3, eventful(), episode_steps=3)
    kept, copies = [], []
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(8):
        result = env.step(env.action_space.sample())
        kept.append((result, env.measurement))
        copies.append([array.copy() for array in _arrays((result, env.measurement))])
    for was, copy in zip(kept, copies, strict=True):
        for one, other in zip(_arrays(was), copy, strict=True):
            np.testing.assert_array_equal(one, other)


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [array for each in value.values() for array in _arrays(each)]
    if isinstance(value, tuple):
        return [array for each in value for array in _arrays(each)]
    if hasattr(value, "__dataclass_fields__"):
        return [array for name in value.__dataclass_fields__ for array in _arrays(getattr(value, name))]
    return []


def test_some_jobs_may_begin_again_while_the_others_go_on() -> None:
    env = SimulatedPipelineVectorEnv(4, eventful(), chunk=2, observation="flat")
    env.reset(seed=0)
    keep = np.full((4, 5), 2)
    before = env.step(keep)
    mask = np.array([False, True, False, False])
    after, infos = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[0][~mask])
    assert (after[1] != before[0][1]).any()
    np.testing.assert_array_equal(infos["_rate"], mask)


@pytest.mark.parametrize("copied", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_as_the_original_does_through_the_next_episodes(copied: Any) -> None:
    env = SimulatedPipelineVectorEnv(3, Scenario.load("wide"), chunk=2, episode_steps=3, observation="flat")
    env.reset(seed=0)
    other = copied(env)
    for number in range(9):
        actions = np.random.default_rng(number).integers(0, 5, env.action_space.shape)
        for one, two in zip(env.step(actions)[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("copied", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_has_threads_of_its_own(copied: Any) -> None:
    env = SimulatedPipelineVectorEnv(130, Scenario.load("wide"), chunk=65, threads=2, observation="flat")
    env.reset(seed=0)
    other = copied(env)
    actions = np.zeros(env.action_space.shape, dtype=int)
    expected = env.step(actions)[0]
    env.close()
    np.testing.assert_array_equal(other.step(actions)[0], expected)
    other.close()


def test_options_of_a_masked_reset_are_those_of_all_jobs() -> None:
    env = SimulatedPipelineVectorEnv(3, eventful())
    env.reset(seed=0)
    slots = np.array([[1, 1, 1, 1, 1], [2, 1, 1, 1, 1], [1, 1, 1, 1, 2]])
    mask = np.array([False, True, True])
    _, infos = env.reset(options={"reset_mask": mask, "job": [7, 3, 6], "slots": slots})
    np.testing.assert_array_equal(infos["job"], [0, 3, 6])
    np.testing.assert_array_equal(env.measurement.slots[1:], slots[1:])


def test_a_job_can_be_named_and_given_slots_to_begin_with() -> None:
    env = SimulatedPipelineVectorEnv(3, eventful())
    _, infos = env.reset(options={"job": np.array([2, 0, 1]), "slots": [2, 1, 1, 1, 1]})
    np.testing.assert_array_equal(infos["job"], [2, 0, 1])
    np.testing.assert_array_equal(env.measurement.slots[:, 0], [2, 2, 2])
    np.testing.assert_array_equal(env.measurement.slots.sum(axis=1), [2, 6, 4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda env: env.step(np.zeros((2, 5), dtype=int)), ["action", "(2, 5)", "(3, 5)"]),
        (lambda env: env.step(np.full((3, 5), 5)), ["action", "5", "stage 0", "0 to 4"]),
        (lambda env: env.step(np.full((3, 5), -1)), ["action", "-1", "0 to 4"]),
        (lambda env: env.step(np.full((3, 5), np.nan)), ["action", "whole"]),
        (lambda env: env.reset(options={"jobs": 3}), ["jobs", "unknown"]),
        (lambda env: env.reset(options={"job": -1}), ["job", "-1", "0"]),
        (lambda env: env.reset(options={"job": [1, 2]}), ["job", "[1, 2]"]),
        (lambda env: env.reset(options={"slots": [1, 2]}), ["slots", "(2,)", "(5,)"]),
        (lambda env: env.reset(options={"slots": [np.nan] * 5}), ["slots", "finite"]),
        (lambda env: env.reset(options={"slots": ["two"] * 5}), ["slots", "two", "numbers"]),
        (lambda env: env.reset(options={"reset_mask": [True]}), ["reset_mask", "3"]),
        (lambda env: env.reset(options={"reset_mask": np.zeros(3, dtype=bool)}), ["reset_mask", "True"]),
    ],
)
def test_bad_input_is_named(call: Any, words: list[str]) -> None:
    env = SimulatedPipelineVectorEnv(3, eventful())
    env.reset(seed=0)
    with pytest.raises(ConfigError) as error:
        call(env)
    for word in words:
        assert word in str(error.value)


def test_closing_twice_is_fine_and_nothing_runs_afterwards() -> None:
    env = SimulatedPipelineVectorEnv(3, eventful())
    with pytest.raises(ResetNeeded):
        env.step(np.full((3, 5), 2))
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.step(np.full((3, 5), 2))
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


@pytest.mark.parametrize("name", ["num_envs", "chunk", "threads"])
def test_counts_must_be_whole_and_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        SimulatedPipelineVectorEnv(**{"num_envs": 2, "scenario": eventful(), name: 0})


def test_pictures_are_drawn_for_each_job() -> None:
    env = SimulatedPipelineVectorEnv(2, eventful(), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.full((2, 5), 3))
    frames = env.render()
    assert len(frames) == 2
    assert (frames[0] != frames[1]).any()


def test_counts_may_be_numpys() -> None:
    made = SimulatedPipelineVectorEnv(np.int64(3), "paper", chunk=np.int32(2), threads=np.int64(1))
    assert made.reset(seed=1)[0]["job"].shape[0] == 3
    assert type(made.num_envs) is int
    for wrong in (0, 1.5, True):
        with pytest.raises(ConfigError, match="num_envs"):
            SimulatedPipelineVectorEnv(wrong, "paper")  # type: ignore[arg-type]
