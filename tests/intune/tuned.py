"""What the tests of tuning share: a clock moved by hand, a simulated job, agents that do as they are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intune.agents.base import Agent, Decision, Proposal, keep
from intune.control import Controller
from intune.decisions import Entry
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.envs.simulated_tunable import SimulatedTunable
from intune.pipelines import Allocation
from tests.envs.one_job import Clock, a_job

STAGES = ("load", "batch", "transform")


class Scripted(Agent):
    """Gives the allocations of a list, one a round; an exception in it is raised."""

    name = "scripted"

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked = 0

    def propose(self, measured: Measurement) -> Proposal:
        self.asked += 1
        given = self.script.pop(0) if self.script else None
        if isinstance(given, BaseException):
            raise given
        if given is None:
            return keep(measured, "keep: the script is over")
        slots = np.array([[float(given[name]) for name in STAGES]])
        return Proposal(slots=slots, pool=np.zeros(1), explain=lambda _: f"script: {given}")


class Stubborn(Scripted):
    """Decides what is no decision."""

    def decide(self, measured: Measurement, stages: Sequence[str]) -> Decision:
        return Decision(allocation={"load": 2}, reason="a mapping")  # type: ignore[arg-type]


def simulated(clock: Clock, **job: Any) -> SimulatedTunable:
    return SimulatedTunable(a_job(**{"interval": 1.0, **job}), stages=STAGES, clock=clock)


def controller(
    agent: Agent, clock: Clock, *, watch: Sequence[Callable[[Entry], None]] = (), **job: Any
) -> tuple[Controller, SimulatedTunable]:
    """A controller of a simulated job, under the same clock."""
    tunable = simulated(clock, **job)
    observer = Observer(tunable, resources=tunable.resources, memory_base=1e9, clock=clock)
    return Controller(observer, agent, tunable.stages, watch=watch, clock=clock), tunable


def rounds(one: Controller, clock: Clock, count: int, seconds: float = 5.0) -> None:
    for _ in range(count):
        clock.now += seconds
        one.step()


def an_entry(**changes: Any) -> Entry:
    """An entry as a controller writes it."""
    clock = Clock()
    one, _ = controller(Scripted({"load": 3, "batch": 1, "transform": 4}), clock)
    rounds(one, clock, 1)
    values = {name: getattr(one.entries[-1], name) for name in Entry.__dataclass_fields__}
    return Entry(**{**values, **changes})


def tuner_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "intune-tuner"]


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Give other threads time until `true`, which they are to make so."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError(f"still not after {seconds} s")


def slots(**counts: int) -> Allocation:
    return Allocation.per_stage(counts)
