"""The control loop: rounds over a simulated job under a clock moved by hand, and the thread around them."""

from __future__ import annotations

import math
import re
import threading
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.absence import Absence
from intune.agents.base import Decision, Proposal
from intune.control import (
    COST,
    CREDIT_S,
    FAULTY,
    LOOKS,
    PATIENCE,
    Controller,
    ControlThread,
    Pace,
    Thrift,
    describe,
)
from intune.decisions import Entry
from intune.envs.measurement import Measurement
from intune.pipelines import Allocation
from intune.pipelines.errors import ConfigError, LoaderError
from tests.intune.tuned import (
    STAGES,
    Clock,
    Scripted,
    Stubborn,
    an_entry,
    controller,
    rounds,
    simulated,
    slots,
    tuner_threads,
    wait_until,
)

QUICK = Pace(shortest=0.001, longest=0.002, tasks=0)
MORE = {"load": 3, "batch": 1, "transform": 4}


class Ticking(Clock):
    """A second more at every look: time passes as fast as the thread goes round."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def running(agent: Scripted, **options: Any) -> tuple[ControlThread, Controller, Any]:
    clock = Ticking()
    one, tunable = controller(agent, clock)
    return ControlThread(one, pace=QUICK, **options), one, tunable


def test_a_round_measures_applies_and_notes() -> None:
    clock = Clock()
    told: list[Entry] = []
    one, tunable = controller(Scripted(MORE), clock, watch=[told.append])
    rounds(one, clock, 2)
    assert tunable.stats().allocation == slots(**MORE)
    first, second = told
    assert first.allocation == slots(load=1, batch=1, transform=1)
    assert first.decided == slots(**MORE)
    assert first.reason.startswith("script: ")
    assert (second.allocation, second.decided) == (slots(**MORE), None)
    assert second.measured.delivered[0] > first.measured.delivered[0]
    assert [entry.time for entry in told] == [5.0, 10.0]
    assert one.best is not None
    assert one.best[0] == slots(**MORE)
    assert describe(one) == (
        f"2 decisions; most delivered: {second.measured.delivered[0]:,.0f} rows/s with load 3, batch 1, transform 4"
    )


def test_what_a_pipeline_gives_is_noted_and_not_what_it_was_asked_for() -> None:
    """An engine has no more than so many slots: asked for more again and again, nothing changes."""
    clock = Clock()
    one, tunable = controller(Scripted(MORE, MORE), clock)
    resize = tunable.resize
    tunable.resize = lambda asked: resize(  # type: ignore[method-assign, assignment]
        {name: min(count, 2) for name, count in dict(asked.slots).items()}
    )
    changed = []
    for _ in range(2):
        clock.now += 5.0
        changed.append(one.step())
    first, second = one.entries
    assert (changed, one.changes) == ([True, False], 1)
    assert (first.decided, second.decided) == (slots(load=2, batch=1, transform=2), None)
    for entry in (first, second):
        assert entry.reason == f"script: {MORE}; the pipeline gave load 2, batch 1, transform 2"


def test_the_best_is_the_best_on_average() -> None:
    clock = Clock()
    one, _ = controller(Scripted(), clock)
    rounds(one, clock, 3)
    assert one.best is not None
    few, rate, _ = one.best
    # One lucky interval of other slots does not make them the best, nor does the past count for nothing.
    lucky = slots(load=9, batch=9, transform=9)
    last = one.entries[-1].measured
    one._judge(replace(last, delivered=last.delivered * 1.03), slots(load=8, batch=8, transform=8))
    assert one.best[:2] == (few, pytest.approx(rate))
    one._judge(replace(last, delivered=last.delivered * 1.5), lucky)
    assert one.best is not None
    assert one.best[0] == lucky
    for _ in range(4):
        one._judge(replace(last, delivered=last.delivered * 0.5), lucky)
    assert one.best[:2] == (few, pytest.approx(rate))


@pytest.mark.parametrize(("pool", "said"), [(1, "1 slot that"), (2, "2 slots that")])
def test_of_a_pool_it_is_said_in_words_that_all_stages_share_it(pool: int, said: str) -> None:
    clock = Clock()
    one, tunable = controller(Scripted(), clock)
    tunable.resize(Allocation.shared(pool))
    one.observer.skip()
    rounds(one, clock, 2)
    assert f"rows/s with {said} all stages share" in describe(one)


def test_nothing_is_decided_between_epochs() -> None:
    clock = Clock()
    agent = Scripted(MORE)
    one, _ = controller(agent, clock)
    assert not one.step()  # the clock stands still: no epoch is under way
    assert (agent.asked, one.rounds, list(one.entries)) == (0, 0, [])
    assert describe(one) == "nothing was decided: no whole interval was measured"
    one.failure = LoaderError("it is closed")
    assert describe(one) == "nothing was decided; tuning stopped: LoaderError: it is closed"


def test_what_is_no_allocation_is_refused() -> None:
    clock = Clock()
    one, tunable = controller(Stubborn(), clock)
    with pytest.raises(ConfigError, match="must give an Allocation or None"):
        rounds(one, clock, 1)
    assert tunable.stats().allocation == slots(load=1, batch=1, transform=1)


@pytest.mark.parametrize(
    "decision", [None, {"load": 2}, slots(load=2), Decision(allocation=None, reason=cast(str, None))]
)
def test_what_is_no_decision_is_refused(decision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Stubborn, "decide", lambda *_: decision)
    one, _ = controller(Stubborn(), clock)
    with pytest.raises(ConfigError, match=r"`decide` must return an .*Decision with a reason"):
        rounds(one, clock, 1)


def test_who_looks_on_and_fails_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    told: list[Entry] = []

    def fails(entry: Entry) -> None:
        raise RuntimeError("no screen")

    one, _ = controller(Scripted(), clock, watch=[fails, told.append])
    rounds(one, clock, 3)
    assert len(told) == 3
    assert caplog.text.count("no screen") == 1


def test_an_agent_that_raises_is_logged_once_and_the_best_slots_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread, one, tunable = running(Scripted(MORE, None, dict.fromkeys(STAGES, 1), ValueError("no idea")))
    thread.start()
    wait_until(lambda: not thread.alive)
    assert str(one.failure) == "no idea"
    assert caplog.text.count("tuning stopped (ValueError: no idea)") == 1
    assert "Traceback" in caplog.text
    assert tunable.stats().allocation == slots(**MORE)
    last = one.entries[-1]
    assert (last.reason, last.decided) == ("tuning stopped: ValueError: no idea", slots(**MORE))
    assert describe(one).startswith("4 decisions; most delivered: ")
    assert describe(one).endswith(" with load 3, batch 1, transform 4; tuning stopped: ValueError: no idea")
    thread.stop()


def test_where_no_thread_can_be_started_training_goes_on_untuned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread, one, _ = running(Scripted())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread.start()
    thread.start()
    thread.stop()
    assert not thread.alive
    assert str(one.failure) == "can't start new thread"
    assert caplog.text.count("tuning stopped (RuntimeError") == 1


def test_intervals_without_rows_say_of_no_slots_what_they_bring() -> None:
    one, _ = controller(Scripted(), Clock())
    measured = replace(an_entry().measured, delivered=np.zeros(1))
    one._note(measured, slots(**MORE), Decision(allocation=None, reason="keep: nothing was delivered"))
    assert describe(one) == "1 decision; too little was delivered to say of any slots what they bring"


def test_of_rows_that_were_delivered_nobody_says_that_they_were_too_few() -> None:
    clock = Clock()
    one, tunable = controller(Scripted(), clock)
    read = tunable.resources
    one.observer._read_resources = lambda: replace(read(), cpus=0.0)
    rounds(one, clock, 2)
    assert one.entries[-1].measured.delivered[0] > 0
    assert describe(one).startswith("2 decisions; what was measured is incomplete or contradicts itself")


def test_an_agent_that_exits_ends_tuning_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    thread, _, tunable = running(Scripted(None, SystemExit(3)))
    thread.start()
    wait_until(lambda: not thread.alive)
    assert "tuning stopped (SystemExit: 3)" in caplog.text
    assert tunable.stats().rows > 0
    thread.stop()


def test_a_pipeline_that_is_over_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    thread, one, tunable = running(Scripted())
    tunable.close()
    thread.start()
    wait_until(lambda: not thread.alive)
    assert isinstance(one.failure, LoaderError)
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text


def test_counters_that_do_not_answer_hold_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    thread, one, tunable = running(Scripted(), patience=0.02)
    stuck, go = threading.Event(), threading.Event()
    read = tunable.stats

    def stats() -> Any:
        stuck.set()
        go.wait()
        return read()

    tunable.stats = stats
    thread.start()
    assert stuck.wait(60)
    thread.stop()  # comes back although the round does not
    assert thread.alive
    tunable.close()
    go.set()
    wait_until(lambda: not thread.alive)
    assert not caplog.records  # what fails after the end is no news
    assert one.rounds == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_round_that_outlasts_the_end_gives_no_slots_and_tells_nobody(fails: bool) -> None:
    asked, go = threading.Event(), threading.Event()

    class Slow(Scripted):
        def propose(self, measured: Measurement) -> Proposal:
            asked.set()
            go.wait()
            return super().propose(measured)

    told: list[Entry] = []
    one, tunable = controller(Slow(RuntimeError("late") if fails else MORE), Ticking(), watch=[told.append])
    before = tunable.stats().allocation
    thread = ControlThread(one, pace=QUICK, patience=0.02)
    thread.start()
    assert asked.wait(60)
    thread.stop()
    assert thread.alive
    go.set()
    wait_until(lambda: not thread.alive, 60)
    assert tunable.stats().allocation == before
    assert (told, one.rounds) == ([], 0)


def test_whoever_is_closed_by_another_who_looks_on_is_told_no_more() -> None:
    clock = Clock()
    told: list[str] = []
    one, _ = controller(
        Scripted(),
        clock,
        watch=[lambda _: told.append("first"), lambda _: one.end(), lambda _: told.append("last")],
    )
    rounds(one, clock, 2)
    assert told == ["first"]


def test_counters_that_stand_still_change_nothing() -> None:
    clock = Clock()
    agent = Scripted(MORE)
    one, tunable = controller(agent, clock)
    frozen = tunable.stats()
    tunable.stats = lambda: frozen
    rounds(one, clock, 5)
    assert (agent.asked, len(one.entries)) == (0, 0)


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (lambda stats, at: replace(stats, elapsed_s=math.nan), "`elapsed_s` is nan"),
        (lambda stats, at: replace(stats, rows=-at), "`rows` fell from "),
        (
            lambda stats, at: replace(
                stats, stages=(replace(stats.stages[0], busy_s=-at), *stats.stages[1:])
            ),
            "`busy_s` of stage 'load' fell from ",
        ),
    ],
)
def test_counters_that_fall_or_are_nan_are_told_once(
    counted: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    agent = Scripted(MORE)
    one, tunable = controller(agent, clock)
    read = tunable.stats
    tunable.stats = lambda: counted(read(), clock.now)
    rounds(one, clock, 2 * FAULTY)
    assert agent.asked == 0
    assert (
        caplog.text.count(f"what `stats()` of a SimulatedTunable counts: {said}") == len(caplog.records) == 1
    )
    assert describe(one).startswith(f"nothing was decided: {said}")


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (lambda stats: replace(stats, elapsed_s=None), "gave `elapsed_s`=None; it must give a number there"),
        (
            lambda stats: replace(stats, stages=(replace(stats.stages[0], tasks="3"), *stats.stages[1:])),
            "gave `tasks` of stage 'load'='3'; it must give a number there",
        ),
    ],
)
def test_counters_that_are_no_numbers_are_refused(counted: Any, said: str) -> None:
    clock = Clock()
    one, tunable = controller(Scripted(MORE), clock)
    read = tunable.stats
    tunable.stats = lambda: counted(read())
    with pytest.raises(ConfigError, match=re.escape(said)):
        rounds(one, clock, 1)


def test_a_pipeline_that_counts_anew_now_and_then_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    one, tunable = controller(Scripted(), clock)
    read = tunable.stats
    tunable.stats = lambda: replace(read(), rows=int(clock.now) % 15, elapsed_s=clock.now % 15)
    rounds(one, clock, 30)
    assert one.rounds >= 15
    assert not caplog.records


def test_a_pause_between_epochs_makes_no_longer_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def interval(thrift: Thrift, seconds: float) -> float:
        waited.append(seconds)
        return 0.0

    monkeypatch.setattr(Thrift, "interval", interval)
    clock = Ticking()
    one, tunable = controller(Scripted(), clock)
    clock()
    frozen = tunable.stats()
    tunable.stats = lambda: frozen
    thread = ControlThread(one, pace=Pace(shortest=1.0, longest=10.0, first=1.0, tasks=0))
    thread.start()
    wait_until(lambda: len(waited) >= 30, 60)
    thread.stop()
    assert set(waited) == {1.0}
    assert one.rounds == 0


def test_the_first_moments_after_a_pause_are_judged_with_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = [1.0, 1.0, 0.0, 0.0, 0.0, 0.1, 1.0, 1.0]
    over = threading.Event()
    clock = Clock()
    one, _ = controller(Scripted(), clock, interval=0.1)
    clock.now += 1.0  # the first batch is out

    def interval(thrift: Thrift, seconds: float) -> float:
        if not passes:
            over.set()
            return 1000.0
        clock.now += passes.pop(0)
        return 0.0

    monkeypatch.setattr(Thrift, "interval", interval)
    thread = ControlThread(one, pace=Pace(tasks=0))
    thread.start()
    assert over.wait(60)
    thread.stop()
    assert [entry.measured.interval[0] for entry in one.entries] == pytest.approx([1.0, 1.0, 1.1, 1.0])


def test_an_interval_begins_anew_when_the_trainer_leaves_and_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Absence):
        def look(self) -> bool:
            looks.append("look")
            return changes.pop(0) if changes else False

    looks: list[str] = []
    changes = [False, True, False, True]
    one, tunable = controller(Scripted(), Clock())
    monkeypatch.setattr(one.observer, "skip", lambda: looks.append("skip"))
    thread = ControlThread(one)
    assert thread._passed(0.0, Told(tunable.stats))
    assert looks == ["look", "look", "skip", "look", "look", "skip"] + ["look"] * LOOKS
    looks.clear()
    changes = [True] * 100  # it takes some batches now and then
    assert thread._passed(0.0, Told(tunable.stats))
    assert looks == ["look", "skip"] * (2 * PATIENCE) + ["look"] * LOOKS
    thread.stop()
    assert not thread._passed(0.0, Told(tunable.stats))


def test_an_interval_begins_anew_after_the_job_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job that was stopped, nothing was delivered for as long: what was seen of its slots before is no worse."""
    one, tunable = controller(Scripted(), Clock())
    skipped: list[float] = []
    times = [0.0, 0.5, 1.0, 30.0]  # as a wait begins and ends; nothing for the others
    thread = ControlThread(one, clock=lambda: times.pop(0) if times else 30.0)
    monkeypatch.setattr(one.observer, "skip", lambda: skipped.append(len(times)))
    assert thread._passed(0.0, Absence(tunable.stats))
    assert skipped == [0]


def test_the_thread_ends_at_once_and_only_once() -> None:
    thread, _, _ = running(Scripted())
    assert not thread.alive
    thread.stop()
    thread.start()  # after the end: nothing to do any more
    wait_until(lambda: not thread.alive)
    thread.stop()
    assert not tuner_threads()


def test_rounds_wait_for_the_first_batch() -> None:
    agent = Scripted()
    one, _ = controller(agent, Ticking())
    looked, begun = threading.Event(), threading.Event()
    one.observer.begun = lambda: looked.set() or begun.is_set()  # type: ignore[method-assign,func-returns-value]
    thread = ControlThread(one, pace=QUICK)
    thread.start()
    assert looked.wait(60)
    assert agent.asked == 0
    begun.set()
    wait_until(lambda: agent.asked > 2)
    thread.stop()
    assert not thread.alive


def test_few_finished_tasks_put_a_round_off_but_not_for_ever() -> None:
    clock = Clock()
    one, tunable = controller(Scripted(), clock)
    clock.now += 5.0
    assert one.observer.tasks() == min(stage.tasks for stage in tunable.stats().stages)
    looks: list[int] = []
    one.observer.elapsed = lambda: 1.0  # type: ignore[method-assign]
    one.observer.tasks = lambda: looks.append(1) or 3  # type: ignore[method-assign,func-returns-value]
    one.step = lambda: looks.append(0) or False  # type: ignore[method-assign,func-returns-value]
    thread = ControlThread(one, pace=Pace(shortest=0.001, longest=0.001, tasks=4))
    thread.start()
    wait_until(lambda: len(looks) > 6)
    thread.stop()
    assert looks[:6] == [1, 1, 0, 1, 1, 0]


@given(st.lists(st.booleans(), max_size=40))
def test_intervals_grow_while_nothing_changes(changes: list[bool]) -> None:
    pace = Pace(shortest=0.5, longest=4.0, growth=2.0)
    seconds = pace.shortest
    for changed in changes:
        after = pace.after(seconds, changed=changed)
        assert after == (0.5 if changed else min(4.0, 2 * seconds))
        seconds = after


@pytest.mark.parametrize(
    "wrong",
    [
        {"shortest": 0},
        {"shortest": 3, "longest": 2},
        {"longest": float("inf")},
        {"growth": 0.9},
        {"tasks": -1},
    ],
)
def test_a_pace_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Pace(**wrong)  # type: ignore[arg-type]


@given(st.floats(0.001, 30.0), st.integers(1, 60))
def test_rounds_cost_a_hundredth_of_a_processor(cost: float, count: int) -> None:
    now, spent = Clock(), Clock()
    thrift = Thrift(clock=now, spent=spent)
    for _ in range(count):
        now.now += thrift.interval(1.0)
        assert spent.now <= COST * now.now + CREDIT_S + 1e-6  # before every round
        spent.now += cost


def test_cheap_rounds_come_as_often_as_wished() -> None:
    now, spent = Clock(), Clock()
    thrift = Thrift(clock=now, spent=spent)
    for _ in range(1000):
        assert thrift.interval(1.0) == 1.0
        now.now += 1.0
        spent.now += 0.005


def test_memory_base_is_what_was_resident_before() -> None:
    clock = Clock()
    one, tunable = controller(Scripted(), clock)
    assert simulated(clock).stages == tunable.stages == one.stages
    assert np.isclose(one.observer.memory_base, 1e9)
