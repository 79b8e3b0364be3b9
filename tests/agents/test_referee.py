"""The referee: changes that do not deliver more are taken back, and tries become rarer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from intune.agents.base import Agent, Proposal
from intune.agents.referee import LONGEST, SOON, WARM, Referee
from intune.envs.measurement import Measurement

Measured = Callable[..., Measurement]


class Restless(Agent):
    """Asks for one slot more of the first stage than there are, always."""

    name = "restless"

    def __init__(self, step: float = 1.0) -> None:
        self.step = step

    def propose(self, measured: Measurement) -> Proposal:
        slots = measured.slots.copy()
        slots[:, 0] = np.maximum(slots[:, 0] + self.step, 1)
        return Proposal(slots=slots, pool=measured.pool.copy(), explain=lambda i: "one more")


def run(
    measurement: Measured,
    rate: Callable[[float], float],
    steps: int,
    *,
    step: float = 1.0,
    first: float = 4.0,
) -> tuple[list[float], list[str], Referee]:
    referee = Referee(Restless(step))
    referee.start(1, 2)
    slots = np.array([[first, 2.0]])
    given, said = [first], []
    for _ in range(steps):
        measured = measurement(stages=2, slots=slots, busy=1.0, delivered=rate(slots[0, 0]))
        proposal = referee.propose(measured)
        slots = proposal.slots
        given.append(float(slots[0, 0]))
        said.append(proposal.explain(0))
    return given, said, referee


def test_what_brings_more_is_kept(measurement: Measured) -> None:
    given, said, _ = run(measurement, lambda n: 100.0 * n, 10)
    assert given == [4.0 + i for i in range(11)]
    assert set(said) == {"one more"}


def test_what_brings_less_is_taken_back(measurement: Measured) -> None:
    given, said, _ = run(measurement, lambda n: 100.0 * n if n <= 6 else 480.0, 6)
    assert max(given) == 7
    assert given[given.index(7) + 1] == 6
    back = next(text for text in said if text.startswith("back"))
    assert back == "back to what was before: the change brought -20.0%; next try in 2 intervals"


def test_what_brings_nothing_is_looked_at_twice_and_then_taken_back(measurement: Measured) -> None:
    given, said, _ = run(measurement, lambda n: 1000.0, 4)
    assert WARM == 1
    assert given == [4.0, 5.0, 5.0, 4.0, 4.0]
    assert said[1] == "keep: the change brought +0.0% so far, which one more interval has to confirm"
    assert said[2].startswith("back to what was before: the change brought +0.0%")


@pytest.mark.parametrize("comes", [True, False])
def test_slots_that_are_not_at_work_yet_are_not_judged(measurement: Measured, comes: bool) -> None:
    """Processes that import their libraries for seven seconds: of five intervals the first three show none of them."""
    referee = Referee(Restless(4.0))
    referee.start(1, 2)
    slots, since, said = np.array([[4.0, 2.0]]), 50.0, []
    for _ in range(7):
        joined = slots[0, 0] if comes and since > 7.0 else 4.0
        measured = measurement(
            stages=2,
            slots=slots,
            busy=[[joined, 1.0]],
            delivered=100.0 * joined,
            interval=2.0,
            since_change=since,
        )
        proposal = referee.propose(measured)
        since = 2.0 if (proposal.slots != slots).any() else since + 2.0
        slots = proposal.slots
        said.append(proposal.explain(0))
    assert said[:4] == ["one more", *3 * ["keep: the slots that were added are not at work yet"]]
    if comes:
        assert said[4] == "one more"
    else:
        assert said[4] == "keep: the slots that were added are not at work yet"
        assert said[5].startswith("keep: the change brought +0.0% so far")
        assert said[6].startswith("back to what was before")


def test_slots_that_need_long_to_begin_are_given_longer_the_next_time(measurement: Measured) -> None:
    """Containers that start for half a minute: every try ended before any of them worked, and none was ever kept."""
    referee = Referee(Restless(4.0))
    referee.start(1, 2)
    slots, since, tries = np.array([[4.0, 2.0]]), 50.0, []
    for _ in range(24):
        joined = slots[0, 0] if since > 32.0 else 4.0
        measured = measurement(
            stages=2, slots=slots, busy=[[joined, 1.0]], delivered=100.0 * joined, interval=5.0, since_change=since,
        )  # fmt: skip
        proposal = referee.propose(measured)
        tries.append(float(proposal.slots[0, 0]))
        since = 5.0 if (proposal.slots != slots).any() else since + 5.0
        slots = proposal.slots
        if joined > 4.0:
            break
    assert (
        tries.count(4.0) == 4
    )  # two tries ended too early, after 10 and 20 seconds, with a rest of two intervals each
    assert proposal.explain(0) == "one more"
    assert slots[0, 0] == 12


@pytest.mark.parametrize(("after", "given"), [(30.0, [5, 6, 5, 5, 4]), (95.0, [5, 6, 5, 5, 6])])
def test_a_burst_does_not_prove_a_change(measurement: Measured, after: float, given: list[float]) -> None:
    """What was queued comes at a hundred times the rate; then slots that are in each other's way deliver a third."""
    referee = Referee(Restless())
    referee.start(1, 2)
    slots, asked = np.array([[4.0, 2.0]]), []
    for rate in (100.0, 1e4, after, after, after):
        proposal = referee.propose(measurement(stages=2, slots=slots, busy=slots, delivered=rate))
        slots = proposal.slots
        asked.append(float(slots[0, 0]))
    assert asked == given
    if given[-1] == 4:
        assert (
            proposal.explain(0)
            == "back to what was before: the change brought -70.0%; next try in 4 intervals"
        )


@pytest.mark.parametrize(("gain", "kept"), [(1.02, False), (1.04, False), (1.1, True)])
def test_many_more_slots_have_to_bring_more_than_noise(
    measurement: Measured, gain: float, kept: bool
) -> None:
    """Eight slots that share one link hold rows under way, and deliver what two did."""
    referee = Referee(Restless(6.0))
    referee.start(1, 2)
    given = [2.0]
    for _ in range(3):
        rate = 1000.0 if given[-1] == 2 else 1000.0 * gain
        now = measurement(stages=2, slots=[[given[-1], 1.0]], busy=1.0, delivered=rate)
        given.append(float(referee.propose(now).slots[0, 0]))
    assert given[1] == 8
    assert (2.0 in given[2:]) != kept


def test_slots_grow_in_steps(measurement: Measured) -> None:
    referee = Referee(Restless(60.0))
    referee.start(1, 2)
    slots, given, said = 2.0, [], []
    for _ in range(4):
        now = measurement(stages=2, slots=[[slots, 1.0]], busy=1.0, delivered=100.0 * slots, cpus=2.0)
        proposal = referee.propose(now)
        slots = float(proposal.slots[0, 0])
        given.append(slots)
        said.append(proposal.explain(0))
    assert given == [8.0, 32.0, 92.0, 152.0]
    assert said == ["one more; for now 4 times as many as there are"] * 2 + ["one more"] * 2


def test_a_pool_grows_in_steps_and_so_do_stages_out_of_a_pool(measurement: Measured) -> None:
    class Asks(Agent):
        name = "asks"

        def propose(self, measured: Measurement) -> Proposal:
            return Proposal(slots=np.array([[13.0, 1.0]]), pool=np.array([pool]), explain=lambda i: "many")

    referee = Referee(Asks())
    for slots, in_force, cpus, pool, given in (
        ([[2.0, 2.0]], 2.0, 2.0, 16.0, 8.0),  # a pool of two: eight
        ([[3.0, 1.0]], 0.0, 2.0, 64.0, 16.0),  # four slots: a pool of sixteen
        ([[2.0, 2.0]], 2.0, 2.0, 0.0, [8.0, 1.0]),  # of a pool every stage had two
        ([[4.0, 1.0]], 0.0, 2.0, 0.0, [13.0, 1.0]),
        ([[2.0, 2.0]], 2.0, 16.0, 64.0, 64.0),  # processors there are, whatever was in force
        ([[1.0, 1.0]], 0.0, 16.0, 0.0, [13.0, 1.0]),
    ):
        referee.start(1, 2)
        now = measurement(stages=2, slots=slots, pool=in_force, busy=1.0, delivered=100.0, cpus=cpus)
        proposal = referee.propose(now)
        assert (proposal.pool[0] if pool else proposal.slots[0].tolist()) == given
        cut = given not in (pool, [13.0, 1.0])
        assert proposal.explain(0) == "many" + ("; for now 4 times as many as there are" if cut else "")


def test_what_many_more_slots_bring_in_one_interval_may_be_a_burst(measurement: Measured) -> None:
    """They begin and end together."""

    def second(gain: float) -> str:
        referee = Referee(Restless(6.0))
        referee.start(1, 2)
        for slots, rate in ((2.0, 1000.0), (8.0, 1000.0 * gain)):
            proposal = referee.propose(measurement(stages=2, slots=[[slots, 1.0]], busy=1.0, delivered=rate))
        return proposal.explain(0)

    assert second(1.15) == "keep: the change brought +15.0% so far, which one more interval has to confirm"
    assert second(1.5) == "one more"
    assert second(0.9).startswith("back to what was before")


@pytest.mark.parametrize(("first_s", "last"), [(0.5, 2.0), (1.0, 14.0)])
def test_a_small_gain_over_what_was_seen_for_a_moment_counts_for_nothing(
    measurement: Measured, first_s: float, last: float
) -> None:
    referee = Referee(Restless(6.0))
    referee.start(1, 2)
    slots = 2.0
    for seconds in (first_s, 1.0, 1.3):
        rate = 1000.0 if slots == 2 else 1150.0
        now = measurement(
            stages=2, slots=[[slots, 1.0]], busy=1.0, delivered=rate, interval=seconds, cpus=2.0
        )
        slots = float(referee.propose(now).slots[0, 0])
    assert slots == last


def test_fewer_slots_for_as_much_are_kept(measurement: Measured) -> None:
    given, _, _ = run(measurement, lambda n: 1000.0, 14, step=-1.0, first=9.0)
    assert given[-1] < given[3]
    assert given[-1] <= 4


@pytest.mark.parametrize(("waiting", "kept"), [(0.01, True), (0.1, False), (np.nan, False)])
def test_fewer_slots_that_feed_the_trainer_are_kept_whatever_the_rate_before(
    measurement: Measured, waiting: float, kept: bool
) -> None:
    """The first interval delivers what was made before the trainer began as well, so the next one looks worse."""
    referee = Referee(Restless(-1.0))
    referee.start(1, 2)
    first = measurement(stages=2, slots=[[4.0, 2.0]], busy=1.0, delivered=1000.0, waiting=waiting)
    fewer = measurement(stages=2, slots=[[3.0, 2.0]], busy=1.0, delivered=950.0, waiting=waiting)
    assert referee.propose(first).slots[0, 0] == 3
    assert referee.propose(fewer).slots[0, 0] == (2 if kept else 4)


def test_where_the_job_cannot_return_what_is_in_force_is_compared_with(measurement: Measured) -> None:
    """A guard that cut slots for want of memory keeps the job from returning to more: no failure of the agent's."""
    referee = Referee(Restless())
    referee.start(1, 2)

    def step(slots: float, rate: float) -> tuple[float, str]:
        measured = measurement(stages=2, slots=[[slots, 2.0]], busy=1.0, delivered=rate)
        proposal = referee.propose(measured)
        return float(proposal.slots[0, 0]), proposal.explain(0)

    assert step(8, 800.0)[0] == 9
    assert step(1, 100.0)[0] == 8  # cut to one
    assert step(5, 500.0) == (6.0, "one more")  # and asked to return, cut to five
    assert step(6, 600.0) == (7.0, "one more")


def test_what_failed_is_not_tried_again_soon(measurement: Measured) -> None:
    given, said, _ = run(measurement, lambda n: 100.0 * n if n <= 5 else 400.0, 200)
    tries = [i for i in range(1, len(given)) if given[i] == 6 and given[i - 1] == 5]
    # Twice, as the first time may have been a stumble, and then not soon.
    assert len(tries) >= 4
    assert tries[1] - tries[0] < 12
    assert (np.diff(tries)[1:] >= SOON).all()
    assert "keep: what the agent would try was tried before, and delivered less" in said


def test_what_failed_beside_more_is_tried_where_there_is_less_now(measurement: Measured) -> None:
    """Twelve slots that failed beside a pool's rate are worth having once memory leaves one slot."""
    referee = Referee(Restless())
    referee.start(1, 2)

    def step(slots: float, rate: float) -> float:
        measured = measurement(stages=2, slots=[[slots, 2.0]], busy=1.0, delivered=rate)
        return float(referee.propose(measured).slots[0, 0])

    asked, tries = 4.0, 0
    for _ in range(16):
        tries += asked == 5
        asked = step(asked, 800.0 if asked == 4 else 500.0)
    assert tries == 2
    assert asked == 4  # it would ask for the same again
    assert step(1, 100.0) == 4  # cut to one
    assert step(3, 300.0) == 4  # and not allowed back
    assert step(4, 400.0) == 5


def test_tries_of_other_allocations_become_rarer_and_rarer(measurement: Measured) -> None:
    class Inventive(Restless):
        """Asks for something else every time."""

        def propose(self, measured: Measurement) -> Proposal:
            self.step += 1.0
            return super().propose(measured)

    referee = Referee(Inventive())
    referee.start(1, 2)
    slots, given = np.array([[4.0, 2.0]]), [4.0]
    for _ in range(200):
        rate = 1000.0 if slots[0, 0] == 4 else 500.0
        slots = referee.propose(measurement(stages=2, slots=slots, busy=1.0, delivered=rate)).slots
        given.append(float(slots[0, 0]))
    gaps = np.diff([i for i in range(1, len(given)) if given[i] > given[i - 1]])
    assert (gaps[1:5] > gaps[:4]).all()
    assert gaps.max() <= 2**LONGEST + 3


@pytest.mark.parametrize(("promised", "again"), [(1010.0, False), (1500.0, True), (None, True)])
def test_what_failed_once_is_tried_again_if_more_is_expected_of_it(
    measurement: Measured, promised: float | None, again: bool
) -> None:
    class Promising(Restless):
        def propose(self, measured: Measurement) -> Proposal:
            rate = None if promised is None else np.full(1, promised)
            return replace(super().propose(measured), rate=rate)

    referee = Referee(Promising())
    referee.start(1, 2)
    slots, given = np.array([[4.0, 2.0]]), []
    for _ in range(12):
        rate = 1000.0 if slots[0, 0] == 4 else 800.0
        slots = referee.propose(measurement(stages=2, slots=slots, busy=1.0, delivered=rate)).slots
        given.append(slots[0, 0])
    assert given.count(5.0) == 1 + again


def test_a_resize_ends_all_waiting(measurement: Measured) -> None:
    referee = Referee(Restless())
    referee.start(1, 2)
    slots, rate = np.array([[4.0, 2.0]]), 1000.0
    for _ in range(30):
        measured = measurement(stages=2, slots=slots, busy=1.0, delivered=rate if slots[0, 0] <= 5 else 800.0)
        proposal = referee.propose(measured)
        slots = proposal.slots
    assert proposal.explain(0).startswith("keep: ")
    larger = referee.propose(measurement(stages=2, slots=slots, busy=1.0, delivered=rate, cpus=32.0))
    assert larger.explain(0).startswith("keep: the machine has another size")
    assert larger.slots[0, 0] == slots[0, 0]
    larger = referee.propose(measurement(stages=2, slots=slots, busy=1.0, delivered=rate, cpus=32.0))
    assert larger.explain(0) == "one more"
    assert larger.slots[0, 0] == slots[0, 0] + 1


@pytest.mark.parametrize("bad", [{"delivered": np.nan}, {"delivered": 0.0}, {"rate": np.nan}])
def test_intervals_that_say_nothing_judge_nothing(measurement: Measured, bad: dict[str, float]) -> None:
    """After them all goes on as if they had not been."""
    outcomes = []
    for spoilt in (False, True):
        referee = Referee(Restless())
        referee.start(1, 2)
        slots = np.array([[4.0, 2.0]])
        for step in range(12):
            if spoilt and step == 6:
                skipped = referee.propose(measurement(**({"stages": 2, "slots": slots, "busy": 1.0} | bad)))
                assert np.isfinite(skipped.slots).all()
            measured = measurement(stages=2, slots=slots, busy=1.0, delivered=100.0 * slots[0, 0])
            slots = referee.propose(measured).slots
        outcomes.append(slots[0, 0])
    assert outcomes[0] == outcomes[1]


def test_a_job_that_died_does_not_go_back_to_what_killed_it(measurement: Measured) -> None:
    """Its intervals deliver nothing until it has started again, with one slot a stage."""
    referee = Referee(Restless())
    referee.start(1, 2)
    for _ in range(4):
        referee.propose(measurement(stages=2, slots=[[8.0, 8.0]], busy=1.0, delivered=800.0))
    ones = {"stages": 2, "slots": [[1.0, 1.0]], "busy": 1.0}
    referee.propose(measurement(**ones, delivered=0.0, killed=True))
    referee.propose(measurement(**ones, delivered=0.0))
    proposal = referee.propose(measurement(**ones, delivered=100.0))
    assert proposal.explain(0) == "one more"
    np.testing.assert_array_equal(proposal.slots, [[2.0, 1.0]])


def test_jobs_are_judged_each_on_its_own(measurement: Measured) -> None:
    referee = Referee(Restless())
    referee.start(2, 2)
    slots = np.array([[4.0, 2.0], [4.0, 2.0]])
    for _ in range(8):
        rate = np.where(slots[:, 0] > 6, np.array([1.0, 0.5]), 1.0) * 100 * slots[:, 0]
        slots = referee.propose(measurement(stages=2, jobs=2, slots=slots, busy=1.0, delivered=rate)).slots
    assert slots[0, 0] == 12
    assert slots[1, 0] <= 7
    referee.forget(np.array([1]))
    one = referee.propose(measurement(stages=2, jobs=2, slots=slots, busy=1.0, delivered=1000.0))
    assert one.explain(1) == "one more"


def test_a_pool_is_put_back_as_a_pool(measurement: Measured) -> None:
    referee = Referee(Restless())
    referee.start(1, 2)
    for _ in range(4):
        referee.propose(measurement(stages=2, slots=8.0, busy=2.0, pool=8.0, delivered=1000.0))
    worse = referee.propose(measurement(stages=2, slots=3.0, busy=2.0, pool=0.0, delivered=500.0))
    assert worse.pool[0] == 8
    assert worse.explain(0).startswith("back to what was before: the change brought -50.0%")


# ---- a machine that shrinks ------------------------------------------------------------------------------------


class Pooled(Agent):
    """Keeps whatever there is."""

    name = "pooled"

    def propose(self, measured: Measurement) -> Proposal:
        return Proposal(
            slots=measured.slots.copy(), pool=measured.pool.copy(), explain=lambda i: "keep as it is"
        )


def shrinking(measurement: Measured, *, waits: float, crowded: float) -> list[float]:
    """Pools of a job on 64 CPUs of which 16 are left after four intervals.

    Args:
        waits: slots that wait for something else, for each that a processor works on.
        crowded: share of the rate that too many slots for the processors leave.
    """
    referee = Referee(Pooled())
    referee.start(1, 2)
    pool, given = 64.0, []
    for step in range(12):
        # What is left is announced in the interval before.
        there = 64.0 if step < 5 else 16.0
        at_work = min(there, pool / (1.0 + waits))
        rate = 100.0 * at_work * (crowded if at_work * (1.0 + waits) < pool else 1.0)
        measured = measurement(
            stages=2, slots=pool, pool=pool, busy=pool / 2, cpu=at_work / 2, cpus_used=at_work, delivered=rate,
            cpus=64.0 if step < 4 else 16.0, slot_limit=256.0,
        )  # fmt: skip
        pool = float(referee.propose(measured).pool[0])
        given.append(pool)
    return given


def test_a_pool_shrinks_with_the_machine_where_slots_only_queue(measurement: Measured) -> None:
    assert shrinking(measurement, waits=0.0, crowded=0.8) == [64.0] * 5 + [16.0] * 7
    # It costs nothing that they queue; fewer slots for as much are as good.
    assert shrinking(measurement, waits=0.0, crowded=1.0)[-1] == 16


def test_a_pool_whose_slots_wait_for_something_else_stays(measurement: Measured) -> None:
    given = shrinking(measurement, waits=3.0, crowded=1.0)
    assert given[:5] == [64.0] * 5
    assert given[-1] == 64


def test_the_rate_of_the_machine_before_is_not_what_slots_are_compared_with(measurement: Measured) -> None:
    referee = Referee(Restless())
    referee.start(1, 2)

    def step(slots: float, rate: float, cpus: float) -> float:
        measured = measurement(stages=2, slots=[[slots, 2.0]], busy=1.0, delivered=rate, cpus=cpus)
        return float(referee.propose(measured).slots[0, 0])

    assert step(4, 1000.0, 64.0) == 5
    assert step(5, 1200.0, 64.0) == 6
    assert step(6, 1400.0, 16.0) == 6  # announced; delivered by all 64 yet
    assert step(6, 400.0, 16.0) == 7
    assert step(7, 450.0, 16.0) == 8


def test_a_change_that_a_resize_interrupts_is_taken_back_unless_it_has_shown_its_worth(
    measurement: Measured,
) -> None:
    """What follows is another machine's, and says nothing of it."""
    referee = Referee(Restless())
    referee.start(1, 2)

    def step(slots: float, rate: float, cpus: float) -> Proposal:
        measured = measurement(stages=2, slots=[[slots, 2.0]], busy=1.0, delivered=rate, cpus=cpus)
        return referee.propose(measured)

    assert step(4, 1000.0, 64.0).slots[0, 0] == 5
    assert step(5, 1200.0, 64.0).slots[0, 0] == 6
    back = step(6, 1100.0, 16.0)
    assert back.slots[0, 0] == 5
    assert back.explain(0).startswith("back to what was before: the machine has another size")
    assert step(5, 300.0, 16.0).slots[0, 0] == 6  # the first of the new machine
    assert "brought -10.0%" in step(6, 270.0, 16.0).explain(0)  # what others are compared with
