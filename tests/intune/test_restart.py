"""A job that restarts under `tune`: it begins where its last run was, and what cannot be used is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import intune
from intune.control import Pace
from intune.envs.simulated_tunable import SimulatedTunable
from intune.learnt import now_and_then
from tests.envs.one_job import Clock, a_job
from tests.intune.tuned import STAGES, Scripted, an_entry, wait_until

QUICK = Pace(shortest=0.001, longest=0.002, tasks=0)
JOB = {
    "cpus": 16.0, "wait": [[4e-5, 0.0, 0.0]], "contention": [[0.02, 0.0, 0.01]], "step": 1e-7, "interval": 1.0,
}  # fmt: skip
"""Waits for storage, and gains ever less from more slots: what a slot more brings has to be learnt."""


class Ticking(Clock):
    """A second more at every look, once it goes: the job takes no memory before it is tuned."""

    goes = False

    def __call__(self) -> float:
        self.now += self.goes
        return self.now


def train(folder: Path, rounds: int, **options: Any) -> list[float]:
    """Rows/s in the intervals of a run, the first before any decision."""
    clock = Ticking()
    job = SimulatedTunable(a_job(**JOB), stages=STAGES, clock=clock)
    with intune.tune(job, pace=QUICK, knowledge=folder, **{"agent": "dqn", **options}) as tuned:
        clock.goes = True
        wait_until(lambda: len(tuned.decisions) >= rounds or not tuned.tuning)
        assert tuned.failure is None
        return [float(entry.measured.delivered[0]) for entry in tuned.decisions[:rounds]]


def test_a_job_that_restarts_begins_at_its_best_and_stays_there(tmp_path: Path) -> None:
    first = train(tmp_path, 24)
    best = max(first)
    assert max(first[:2]) < 0.8 * best  # the first run took more decisions
    again = train(tmp_path, 5)
    assert min(again) > 0.95 * best
    (file,) = tmp_path.iterdir()
    stored = json.loads(file.read_text())
    assert set(stored["learnt"]) == {"twin", "memory"}
    assert file.stat().st_size < 20_000


def test_a_job_that_is_killed_has_kept_what_it_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.learnt.KEPT_EVERY_S", 0.0)
    clock = Ticking()
    job = SimulatedTunable(a_job(**JOB), stages=STAGES, clock=clock)
    with intune.tune(job, pace=QUICK, knowledge=tmp_path):
        clock.goes = True
        wait_until(lambda: any(tmp_path.glob("*.json")))
        (file,) = tmp_path.glob("*.json")
        stored = json.loads(file.read_text())
    assert stored["rate"] > 0
    assert set(stored["learnt"]) == {"twin", "memory"}


def test_what_is_learnt_is_kept_every_minute_as_long_as_that_goes_well() -> None:
    goes_well = [True, True, False]
    listener = now_and_then(lambda: goes_well.pop(0))
    left = []
    for time in (10.0, 59.0, 60.0, 100.0, 119.0, 125.0, 184.0, 190.0, 1000.0):
        listener(an_entry(time=time))
        left.append(len(goes_well))
    assert left == [3, 3, 2, 2, 2, 1, 1, 0, 0]


def test_what_another_agent_learnt_serves_too(tmp_path: Path) -> None:
    best = max(train(tmp_path, 24, agent="planner"))
    assert min(train(tmp_path, 4)) > 0.95 * best


@pytest.mark.parametrize(
    "learnt", [{"twin": {"weight": [1, 2]}}, {"memory": "lots"}, {"twin": None, "memory": None}]
)
def test_what_cannot_be_used_is_one_line(
    learnt: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, 3)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "learnt": learnt}))
    assert len(train(tmp_path, 3)) == 3
    assert caplog.text.count("cannot be used") == len(caplog.records) == 1


def test_an_agent_that_fails_to_say_what_it_learnt_loses_only_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(Scripted):
        def knowledge(self) -> dict[str, Any]:
            raise ZeroDivisionError("nothing to say")

        def recall(self, known: Any) -> None:
            raise RecursionError("too much")

    for _ in range(2):
        train(tmp_path, 3, agent=Mute())
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["learnt"] == {}
    assert caplog.text.count("is not kept (ZeroDivisionError: nothing to say)") == 2
    assert caplog.text.count("cannot be used (RecursionError: too much)") == 1
