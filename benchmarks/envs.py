"""Steps per second of the simulated environments, resets included: ``python -m benchmarks.envs``.

One step is one interval of one job: slots given, physics, measurement, observation, reward. Episodes end after 64
decisions or out of memory and begin again with another job. Time is given twice: as it passed, and as the processors
worked for it, which tells what the machine could do if it did nothing else. Then, processor time in which a twin is
made of eight intervals of a job, as between two decisions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import intune.envs  # noqa: F401 - registers the environments
from benchmarks import report as reports
from benchmarks.environment import describe
from intune.envs.calibrate import twin_of
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource

ID = "intune/SimulatedPipeline-v0"
EPISODE = 64
TWINS = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Steps per second of the simulated environments, and the time of a twin.

    Attributes:
        json: Where to write the results; they are printed, too.
        scenario: family of jobs; `paper` has five stages.
        num_envs: jobs at once.
        threads: of the vectorised environment.
        seconds: to run each for, at least.
        repeats: of each, interleaved.
    """

    json: Path | None = None
    scenario: str = "paper"
    num_envs: int = 4096
    threads: int = 2
    seconds: float = 2.0
    repeats: int = 3


@dataclass(frozen=True)
class Speed:
    """Steps per second as time passed, and per second of a processor."""

    wall: float
    processor: float


def run_single(settings: Settings, make: dict[str, Any]) -> Speed:
    """The single environment under random actions."""
    env = gym.make(ID, scenario=settings.scenario, disable_env_checker=True, **make)
    env.reset(seed=0)
    shape = env.action_space.shape or ()
    actions = np.random.default_rng(0).integers(0, 5, (512, *shape))
    steps, begin, worked = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < settings.seconds:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        steps += len(actions)
    return Speed(steps / (time.perf_counter() - begin), steps / (time.process_time() - worked))


def run_vector(settings: Settings, make: dict[str, Any]) -> Speed:
    """The vectorised environment under random actions."""
    env = gym.make_vec(ID, num_envs=settings.num_envs, scenario=settings.scenario, **make)
    env.reset(seed=0)
    shape = env.action_space.shape or ()
    actions = [np.random.default_rng(at).integers(0, 5, shape) for at in range(16)]
    for action in actions * 4:
        env.step(action)
    rounds, begin, worked = 0, time.perf_counter(), time.process_time()
    # Whole episodes: most end at the same step, and their beginning anew must have its true share.
    while time.perf_counter() - begin < settings.seconds:
        for action in actions * (EPISODE // len(actions)):
            env.step(action)
        rounds += EPISODE
    steps = rounds * settings.num_envs
    speed = Speed(steps / (time.perf_counter() - begin), steps / (time.process_time() - worked))
    env.close()
    return speed


def time_twins(scenario: str) -> list[float]:
    """Processor seconds for each of `TWINS` twins, made of eight intervals of as many allocations of a job."""
    took = []
    for number in range(TWINS):
        job = JobSource(Scenario.load(scenario), split="test").jobs([number])
        history = []
        for slots in range(1, 9):
            simulator = Simulator(job, steps=1)
            simulator.allocate(np.where(job.present, float(slots), 0.0))
            history += [simulator.run() for _ in range(3)][-1:]
        began = time.process_time()
        twin_of(history)
        took.append(time.process_time() - began)
    return took


def main(settings: Settings) -> None:
    cases: dict[str, tuple[Callable[[Settings, dict[str, Any]], Speed], dict[str, Any]]] = {
        "single": (run_single, {}),
        "single, restarted when out of memory": (run_single, {"on_kill": "restart"}),
        "vectorised, 1 thread": (run_vector, {}),
        f"vectorised, {settings.threads} threads": (run_vector, {"threads": settings.threads}),
        f"vectorised, {settings.threads} threads, restarted when out of memory": (
            run_vector,
            {"threads": settings.threads, "on_kill": "restart"},
        ),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in cases}
    loads = []
    for _ in range(settings.repeats):
        for name, (run, make) in cases.items():
            speeds[name].append(run(settings, make))
            loads.append(os.getloadavg()[0])
    report = {
        "scenario": settings.scenario,
        "num_envs": settings.num_envs,
        "load_average": [round(min(loads), 1), round(max(loads), 1)],
        "environment": describe(),
        "steps_per_s": {
            name: {
                "median": round(float(np.median([each.wall for each in found]))),
                "runs": [round(each.wall) for each in found],
                "per_processor_second": round(float(np.median([each.processor for each in found]))),
            }
            for name, found in speeds.items()
        },
        "twin_ms": round(1e3 * float(np.median(time_twins(settings.scenario))), 1),
    }
    reports.write(settings.json, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="python -m benchmarks.envs"))
