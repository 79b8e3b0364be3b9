"""What an agent takes over from its job's last run: fewer observations, memory only once confirmed, no nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intune.agents.dqn import DQN
from intune.agents.guard import Guard
from intune.agents.memory import MemoryRecord
from intune.agents.planner import Planner
from intune.agents.recall import COUNTS, KEPT, MemoryLog, recall_twin, twin_knowledge
from intune.agents.referee import Referee
from intune.agents.registry import make
from intune.agents.twin import Twin
from intune.control import Controller
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.envs.simulated_tunable import SimulatedTunable
from intune.pipelines.errors import ConfigError
from tests.envs.one_job import Clock, a_job

STAGES = ("load", "batch", "transform")


def run(agent: Any, rounds: int, known: Any = None, **job: Any) -> list[Measurement]:
    """The measurements of a simulated job that begins with one slot a stage."""
    clock = Clock()
    tunable = SimulatedTunable(a_job(**{"interval": 1.0, **job}), stages=STAGES, clock=clock)
    observer = Observer(
        tunable, resources=tunable.resources, memory_base=job.get("base_bytes", 1e9), clock=clock
    )
    one = Controller(observer, agent, STAGES, clock=clock)
    if known is not None:
        agent.recall(known)
    for _ in range(rounds):
        clock.now += 5.0
        one.step()
    return [entry.measured for entry in one.entries]


CONTENDED = {
    "cpus": 16.0, "slots_per_cpu": 8.0, "wait": [[4e-5, 0.0, 0.0]], "contention": [[0.02, 0.0, 0.01]], "step": 1e-7,
}  # fmt: skip
AGENTS = [lambda: Guard(Referee(DQN())), lambda: Guard(Referee(Planner()))]


@pytest.mark.parametrize("made", AGENTS)
def test_a_job_that_restarts_is_at_its_best_after_its_first_decision(made: Callable[[], Any]) -> None:
    """Even where it must begin with one slot a stage again."""
    first = made()
    rates = [float(measured.delivered[0]) for measured in run(first, 16, **CONTENDED)]
    best = max(rates)
    assert rates[1] < 0.8 * best  # it took the first run longer
    known = json.loads(json.dumps(first.knowledge(), allow_nan=False))
    assert len(json.dumps(known)) < 20_000
    again = [float(measured.delivered[0]) for measured in run(made(), 6, known, **CONTENDED)]
    assert again[0] == pytest.approx(rates[0])
    assert min(again[1:]) > 0.85 * best  # a bound on memory that was confirmed once leaves some room
    assert again[-1] > 0.94 * best


def test_what_is_recalled_counts_for_less() -> None:
    agent = Planner()
    run(agent, 16, **CONTENDED)
    known = twin_knowledge(agent._twin)
    twin = Twin(1, 3)
    recall_twin(twin, known)
    assert max(known["weight"]) > 2 * COUNTS
    learnt = twin.learnt()
    assert learnt["weight"].max() == pytest.approx(COUNTS)
    part = learnt["weight"][0] / np.array(known["weight"])
    assert learnt["misfit"][0] == pytest.approx(np.array(known["misfit"]) * part[:, None])
    slots = np.array([[30.0, 1.0, 3.0]])
    assert twin.capacity(slots) == pytest.approx(agent._twin.capacity(slots), rel=0.1)
    assert (twin.deviation(slots) >= agent._twin.deviation(slots) - 1e-6).all()  # less sure, never surer


def test_a_job_that_changed_is_known_anew() -> None:
    old = Guard(Planner())
    run(old, 12, **CONTENDED)
    slower = {**CONTENDED, "cpu": [[2e-6, 1e-6, 16e-6]], "wait": [[1e-5, 0.0, 0.0]]}
    fresh = run(Guard(Planner()), 12, **slower)
    recalled = run(Guard(Planner()), 12, old.knowledge(), **slower)
    assert recalled[-1].delivered[0] > 0.95 * fresh[-1].delivered[0]


def measured(slots: tuple[float, ...], used: float, *, base: float = 1e9, pool: float = 0.0) -> Measurement:
    one = run(make("static"), 1)[0]
    changes = {"slots": np.array([slots]), "memory_used": np.array([used]), "memory_base": np.array([base]),
               "memory_queued": np.zeros(1), "pool": np.array([pool])}  # fmt: skip
    return Measurement(**{**{name: getattr(one, name) for name in one.__dataclass_fields__}, **changes})


def look(log: MemoryLog, record: MemoryRecord, seen: Measurement) -> None:
    record.see(seen)
    log.look(record, seen)


def kept() -> dict[str, Any]:
    """Of a run that saw two allocations: base 1 GB, 0.1 GB a slot."""
    log, record = MemoryLog(3), MemoryRecord(1, 3)
    for slots in ((1.0, 1.0, 1.0), (2.0, 2.0, 4.0)):
        look(log, record, measured(slots, 1e9 + 1e8 * sum(slots)))
    known = log.knowledge()
    assert known == {"slots": [[1, 1, 1], [2, 2, 4]], "added": [3e8, 8e8], "base": 1e9}
    return known


@pytest.mark.parametrize(
    ("seen", "counts"),
    [
        (measured((1.0, 1.0, 1.0), 1.3e9), True),
        (measured((1.0, 1.0, 1.0), 1.33e9), True),
        (measured((1.0, 1.0, 1.0), 1.6e9), False),  # it takes twice as much now
        (measured((1.0, 1.0, 1.0), 1.1e9), False),
        (measured((1.0, 1.0, 1.0), 1.8e9, base=1.5e9), False),  # another base
    ],
)
def test_memory_counts_once_it_is_confirmed(seen: Measurement, counts: bool) -> None:
    record, fresh, log = MemoryRecord(1, 3), MemoryRecord(1, 3), MemoryLog(3)
    log.recall(kept())
    fresh.see(seen)
    look(log, record, seen)
    assert not log.waiting
    wide = np.array([[2.0, 2.0, 4.0]])
    bound, unknown = (float(one.bound(wide, np.zeros(1), seen)[0]) for one in (record, fresh))
    if counts:  # never below what such slots took, nor below what is confirmed now
        assert bound != unknown
        assert bound > 1e9 + 8e8 * max(1.0, (float(seen.memory_used[0]) - 1e9) / 3e8)
    else:
        assert bound == unknown


def test_entries_count_though_they_have_fewer_slots_than_what_is_in_force() -> None:
    """A job that watches its memory passes over intervals that still hold what more slots left; these hold nothing."""
    log, record = MemoryLog(3), MemoryRecord(1, 3)
    log.recall(kept())
    now = replace(measured((2.0, 2.0, 4.0), 1.8e9), watched=np.array([True]))
    look(log, record, now)
    assert record._sums.count[0] == pytest.approx(2, rel=0.01)
    # And the next interval is compared with the one before it, not with what was recalled.
    fewer = replace(measured((1.0, 1.0, 2.0), 1.4e9), watched=np.array([True]))
    look(log, record, fewer)
    assert record._sums.count[0] == pytest.approx(2, rel=0.01)


def test_memory_waits_for_slots_that_it_knows() -> None:
    record, log = MemoryRecord(1, 3), MemoryLog(3)
    log.recall(kept())
    for seen in (measured((1.0, 1.0, 1.0), 1.3e9, pool=3.0), measured((3.0, 1.0, 1.0), 1.5e9)):
        look(log, record, seen)
        assert log.waiting
    look(log, record, measured((2.0, 2.0, 4.0), 1.8e9))
    assert not log.waiting


def test_few_allocations_are_kept_those_in_force_last() -> None:
    record, log = MemoryRecord(1, 3), MemoryLog(3)
    for count in range(1, 2 * KEPT):
        look(log, record, measured((float(count), 1.0, 1.0), 2e9))
    assert [slots[0] for slots in log.knowledge()["slots"]] == list(range(KEPT, 2 * KEPT))


@pytest.mark.parametrize(
    "wrong",
    [
        {"twin": 3}, {"twin": {}}, {"twin": {"weight": [1], "alone": [], "misfit": [], "cpu": []}},
        {"memory": [1, 2]}, {"memory": {"slots": [[1, 1]], "added": [1], "base": 1}},
        {"memory": {"slots": [[1, 1, "x"]], "added": [1], "base": 1}},
        {"memory": {"slots": [[1, 1, 1]], "added": [-1], "base": 1}},
        {"memory": {"slots": [[1, 1, 1]], "added": [1], "base": 1e300}},
        {"memory": {"slots": [[1, 1, 1]], "added": [], "base": 1}},
        {"memory": {"slots": [[1, 1, 1]] * 99, "added": [1] * 99, "base": 1}},
        {"memory": {"slots": [[1, 1, 1]]}},
    ],
)  # fmt: skip
def test_nonsense_is_told_and_changes_nothing(wrong: dict[str, Any]) -> None:
    agent = Guard(Planner())
    agent.start(1, 3)
    before = agent.knowledge()
    with pytest.raises(ConfigError):
        agent.recall(wrong)
    assert agent.knowledge() == before


def test_numbers_of_a_twin_are_checked() -> None:
    known = twin_knowledge(Twin(1, 3))
    for name, value in (("weight", -1.0), ("alone", 1e300)):
        changed = json.loads(json.dumps(known))
        changed[name][0] = value if name == "weight" else [value] * len(changed[name][0])
        with pytest.raises(ConfigError, match=name):
            recall_twin(Twin(1, 3), changed)


def test_agents_that_keep_nothing_recall_anything() -> None:
    agent = make("even")
    agent.start(1, 3)
    assert agent.knowledge() == {}
    agent.recall({"twin": 3})
