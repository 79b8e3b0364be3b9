"""The live environment, over simulated jobs with a clock that is moved by hand, and over a real loader."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

import intune.envs
from intune.envs.actions import KEEP
from intune.envs.jobs import Jobs
from intune.envs.live import LivePipelineEnv
from intune.envs.simulated import SimulatedPipelineEnv
from intune.envs.simulated_tunable import SimulatedTunable
from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines.errors import ConfigError, LoaderError
from tests.envs.one_job import Clock, a_job

assert intune.envs


def live(job: Jobs | None = None, **options: Any) -> tuple[LivePipelineEnv, SimulatedTunable]:
    clock = Clock()
    tunable = SimulatedTunable(a_job() if job is None else job, clock=clock)
    options = {"slots_per_cpu": 4.0, "memory_base": 1e9, **options}
    env = LivePipelineEnv(
        tunable, wait=clock.wait, clock=clock, resources=tunable.resources, render_mode="ansi", **options
    )
    return env, tunable


@pytest.mark.parametrize("kind", ["features", "flat", "paper"])
def test_it_passes_gymnasiums_checks_over_a_simulated_job(kind: str) -> None:
    clock = Clock()
    tunable = SimulatedTunable(a_job(), clock=clock)
    env = gym.make(
        "intune/LivePipeline-v0",
        tunable=tunable,
        wait=clock.wait,
        clock=clock,
        resources=tunable.resources,
        observation=kind,
        disable_env_checker=True,
    )
    assert env.spec is not None
    assert env.spec.nondeterministic
    check_env(env.unwrapped)
    assert env.get_wrapper_attr("observer").tunable is tunable


@pytest.mark.parametrize("kind", ["flat", "paper"])
def test_it_passes_stable_baselines3s_checks(kind: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env, _ = live(observation=kind)
    checker.check_env(env, skip_render_check=True)


def test_it_sees_and_gets_what_the_simulated_environment_does_over_the_same_job() -> None:
    """One place for observation, action and reward: both environments over one job agree, move by move."""
    env, _ = live()
    simulated = SimulatedPipelineEnv(a_job())
    first, _ = env.reset(seed=1)
    other, _ = simulated.reset(seed=1)
    rng = np.random.default_rng(3)
    for _ in range(12):
        np.testing.assert_allclose(first["stages"], other["stages"], atol=0.15)
        np.testing.assert_allclose(first["job"], other["job"], atol=0.02)
        action = rng.integers(0, 5, 3)
        first, reward, over, cut, info = env.step(action)
        other, wanted, *_, also = simulated.step(action)
        assert reward == pytest.approx(wanted, rel=0.01)
        assert info["moved"] == also["moved"]
        assert info["rate"] == pytest.approx(also["rate"], rel=0.01)
        assert not over
        assert not cut


def test_keeping_touches_nothing_and_a_pool_is_left_alone() -> None:
    env, tunable = live()
    tunable.resize(Allocation.shared(5))
    env.reset()
    _, _, _, _, info = env.step([KEEP] * 3)
    assert tunable.stats().allocation == Allocation.shared(5)
    assert info["moved"] == 0.0
    env.step([KEEP, KEEP + 1, KEEP])
    assert tunable.stats().allocation.as_dict() == {"stage 1": 5, "stage 2": 6, "stage 3": 5}


def test_absolute_actions_name_slots_or_a_pool_and_are_cut_to_what_may_be_given() -> None:
    env, tunable = live(action="absolute", pool=True)
    env.reset(options={"slots": [2, 1, 2]})
    assert tunable.stats().allocation.as_dict() == {"stage 1": 2, "stage 2": 1, "stage 3": 2}
    env.step(np.array([3.0, 0.0, 4.0, 0.0], dtype=np.float32))
    assert tunable.stats().allocation.as_dict() == {"stage 1": 3, "stage 2": 1, "stage 3": 4}
    env.step(np.array([1.0, 1.0, 1.0, 7.0], dtype=np.float32))
    assert tunable.stats().allocation == Allocation.shared(7)
    env.step(np.array([100.0, 1.0, 1.0, 0.0], dtype=np.float32))
    assert tunable.stats().allocation.total <= 32


def test_an_episode_ends_when_the_pipeline_is_over_and_says_why() -> None:
    env, tunable = live()
    env.reset()
    tunable.close()
    _, reward, terminated, truncated, info = env.step([KEEP] * 3)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert "closed" in info["over"]
    with pytest.raises(ResetNeeded):
        env.step([KEEP] * 3)


def test_what_is_refused_is_raised_and_ends_nothing() -> None:
    env, tunable = live()
    env.reset()
    resize = tunable.resize

    def refuses(allocation: Any) -> None:
        raise ConfigError("no more than 7")

    tunable.resize = refuses  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="no more than 7"):
        env.step([KEEP + 1] * 3)
    tunable.resize = resize  # type: ignore[method-assign]
    assert not env.step([KEEP + 1] * 3)[2]


def test_a_job_that_has_not_begun_earns_nothing_and_sets_no_measure() -> None:
    env, tunable = live()
    env.observer.measure = _without_rows(env.observer.measure)  # type: ignore[method-assign]
    env.reset()
    assert [env.step([KEEP] * 3)[1] for _ in range(2)] == [0.0, 0.0]
    env.observer = type(env.observer)(
        tunable, resources=tunable.resources, memory_base=1e9, slots_per_cpu=4.0, clock=tunable._clock
    )
    rewards = [env.step([KEEP] * 3)[1] for _ in range(3)]
    assert all(0.0 < each < 1.5 for each in rewards)


def _without_rows(measure: Callable[[], Any]) -> Callable[[], Any]:
    def none() -> Any:
        return replace(measure(), delivered=np.zeros(1), step=np.full(1, np.nan))

    return none


def test_keeping_takes_back_what_a_smaller_machine_has_no_room_for() -> None:
    smaller = {"event_time": [[12.0]], "event_cpus": [[0.25]], "event_memory": [[1.0]]}
    env, tunable = live(a_job(**smaller))
    env.reset(options={"slots": [10, 10, 10]})
    totals = []
    for _ in range(5):
        env.step([KEEP] * 3)
        totals.append(tunable.stats().allocation.total)
    assert totals[0] == 30
    assert totals[-1] <= 8


def test_slots_to_begin_with_are_cut_to_what_may_be_given() -> None:
    env, tunable = live()
    env.reset(options={"slots": [1000, 1000, 1000]})
    assert 3 < tunable.stats().allocation.total <= 32
    with pytest.raises(ConfigError, match="`slots`='abc'"):
        env.reset(options={"slots": "abc"})


def test_wrong_actions_are_errors_and_leave_the_pipeline_as_it_was() -> None:
    env, tunable = live()
    with pytest.raises(ResetNeeded):
        env.step([KEEP] * 3)
    env.reset()
    for action in ([0, 0], [0, 0, 9], [0.5, 0, 0], [np.nan, 0, 0]):
        with pytest.raises(ConfigError, match="action"):
            env.step(action)
    assert tunable.stats().allocation.total == 3
    env.step([KEEP] * 3)


def test_settings_are_checked() -> None:
    for options in ({"interval": 0}, {"split": "test"}, {"slots_per_cpu": 0.5}, {"memory_base": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            live(**options)
    env, _ = live(stages=5)
    observation, _ = env.reset()
    assert observation["mask"].tolist() == [1, 1, 1, 0, 0]
    env.step([KEEP, KEEP + 1, KEEP, 4, 4])
    for options in ({"job": 3}, {"slots": [1, 2]}, {"slots": [1, 2, np.nan, 0, 0]}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            env.reset(options=options)


def test_episodes_are_cut_after_their_steps_and_closing_twice_is_fine() -> None:
    env, tunable = live(episode_steps=2)
    env.reset()
    assert not env.step([KEEP] * 3)[3]
    assert env.step([KEEP] * 3)[3]
    assert "rows/s" in env.render()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()
    assert tunable.stats().allocation.total == 3


# ---- over a real loader ---------------------------------------------------------------------------------------


@contextmanager
def consumed(folder: Path) -> Iterator[tuple[Loader, list[int], threading.Event]]:
    """A loader that a thread reads epoch after epoch, what it got, and what ends it."""
    table = pa.table({"x": np.arange(40_000), "y": np.ones(40_000, np.float32)})
    pq.write_table(table, folder / "a.parquet", row_group_size=2_000)
    pipeline = Pipeline.from_parquet(str(folder / "a.parquet")).batch(500).map(lambda block: block).to("cpu")
    over = threading.Event()
    got: list[int] = []
    with pipeline.loader(executor="threads", budget=Budget(cpus=2, memory=1 << 28)) as loader:

        def read() -> None:
            while not over.is_set():
                got.append(sum(len(batch["x"]) for batch in loader))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield loader, got, over
        finally:
            over.set()
            reader.join()


def until_read(loader: Loader) -> Callable[[float], None]:
    """Waits not for a time but until the trainer has got more, however slow the machine is."""

    def wait(seconds: float) -> None:
        before = loader.stats().rows
        for _ in range(5_000):
            if loader.stats().rows > before + 2_000:
                return
            time.sleep(0.002)
        raise TimeoutError("the loop that reads stands still")

    return wait


def test_it_passes_gymnasiums_checks_over_a_loader_that_is_read_meanwhile(tmp_path: Path) -> None:
    with consumed(tmp_path) as (loader, got, over):
        env = gym.make(
            "intune/LivePipeline-v0", tunable=loader, wait=until_read(loader), disable_env_checker=True
        ).unwrapped
        check_env(env)
        env.reset()
        rewards = [env.step(env.action_space.sample())[1] for _ in range(4)]
        assert np.isfinite(rewards).all()
        measured = env.measurement  # type: ignore[attr-defined]
        assert measured.delivered[0] > 0
        assert measured.memory_used[0] < measured.memory_limit[0]
        over.set()
    assert set(got) == {40_000}


def test_a_closed_loader_ends_the_episode_and_begins_none(tmp_path: Path) -> None:
    with consumed(tmp_path) as (loader, _, over):
        env = LivePipelineEnv(loader, wait=until_read(loader))
        env.reset()
        over.set()
    env._wait = lambda seconds: None
    _, reward, terminated, _, info = env.step([KEEP] * 4)
    assert (reward, terminated) == (0.0, True)
    assert "closed" in info["over"]
    with pytest.raises(LoaderError, match="closed"):
        env.reset()


def test_an_agent_that_fails_stops_nothing_but_itself(tmp_path: Path) -> None:
    """Whatever is raised in a step is raised to who called it; the loop that reads goes on."""
    with consumed(tmp_path) as (loader, got, _):

        def fails(seconds: float) -> None:
            raise RuntimeError("the agent's fault")

        env = LivePipelineEnv(loader, wait=until_read(loader))
        env.reset()
        env._wait = fails
        with pytest.raises(RuntimeError, match="agent's fault"):
            env.step([KEEP + 1, KEEP, KEEP, KEEP])
        read = len(got)
        for _ in range(60):
            until_read(loader)(0.0)
        assert len(got) > read + 1
    assert set(got) == {40_000}
