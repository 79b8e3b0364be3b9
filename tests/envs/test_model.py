from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.envs.capacity import service
from intune.envs.conditions import Conditions, quiet
from intune.envs.jobs import Floats, Jobs
from intune.envs.model import Flow, State, advance, passed
from intune.envs.pools import pooled_flows, pooled_peak
from intune.envs.prepared import prepare
from tests.envs.generated import eventful_jobs, plain_jobs, rate_of, seeds

few = settings(max_examples=30)


def run(
    jobs: Jobs,
    slots: Any,
    *,
    intervals: int = 1,
    seconds: float | None = None,
    pool: Any = None,
    queue: Any = None,
) -> tuple[State, Flow]:
    """The last of so many intervals without chance, from empty queues or `queue`."""
    given_slots = np.broadcast_to(np.asarray(slots, dtype=float), jobs.present.shape) * jobs.present
    pools = (
        np.zeros(len(jobs)) if pool is None else np.broadcast_to(np.asarray(pool, dtype=float), (len(jobs),))
    )
    state = State.empty(jobs)
    if queue is not None:
        state = replace(state, queue=np.array(queue, dtype=float), slots=given_slots)
    now = quiet(jobs, 1).at(np.zeros(len(jobs), dtype=int)).conditions
    long = jobs.interval if seconds is None else np.full(len(jobs), seconds)
    prepared = prepare(jobs)
    for _ in range(intervals):
        state, flow = advance(prepared, state, now, given_slots, pools, long)
    return state, flow


def euler(rate: Floats, queue: Floats, room: Floats, seconds: float, steps: int) -> Floats:
    """Rows passed by fluid queues in small steps of time: nothing of the formula under test."""
    queue, gone = queue.copy(), np.zeros(len(rate))
    step = seconds / steps
    for _ in range(steps):
        flow = rate * step
        # Against the line: what a stage may pass on depends on what the next one takes at the same time.
        for at in range(len(queue) - 1, -1, -1):
            flow[at] = min(flow[at], max(room[at] - queue[at], 0.0) + flow[at + 1])
        for at in range(len(queue)):
            flow[at + 1] = min(flow[at + 1], queue[at] + flow[at])
        queue += flow[:-1] - flow[1:]
        gone += flow
    return gone


@few
@given(seeds)
def test_flows_agree_with_a_simulation_in_small_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stages = int(rng.integers(1, 7))
    rate = rng.uniform(0, 100, stages + 1) * (rng.random(stages + 1) < 0.9)
    room = rng.uniform(0, 300, stages)
    queue = room * rng.random(stages) * (rng.random(stages) < 0.7)
    seconds = float(rng.uniform(0.5, 10))
    rows, _ = passed(rate[None], queue[None], room[None], np.array([seconds]))
    steps = 1000
    expected = euler(rate, queue, room, seconds, steps)
    np.testing.assert_allclose(rows[0], expected, atol=2.0 * stages * 100 * seconds / steps)


@few
@given(seeds)
def test_flows_solve_the_min_plus_system(seed: int) -> None:
    """By its definition: rows of stage i are the least, over all stages j, of what j lets through."""
    rng = np.random.default_rng(seed)
    count, stages = 20, int(rng.integers(1, 7))
    rate = rng.uniform(0, 100, (count, stages + 1))
    room = rng.uniform(0, 300, (count, stages))
    queue = room * rng.random((count, stages))
    seconds = rng.uniform(0.5, 10, count)
    rows, held_up = passed(rate, queue, room, seconds)
    for n in range(count):
        for i in range(stages + 1):
            own = [
                rate[n, j] * seconds[n] + (queue[n, j:i].sum() if j < i else (room - queue)[n, i:j].sum())
                for j in range(stages + 1)
            ]
            assert rows[n, i] == pytest.approx(min(own))
            assert held_up[n, i] == (min(own[i:]) < min(own[: i + 1]))


def test_two_stages_fill_and_drain_as_reckoned_by_hand() -> None:
    """Stage 1 makes 100 rows/s, stage 2 takes 60, the trainer 50; 200 places behind stage 1, 40 behind stage 2."""
    jobs = Jobs.of(
        stages=2,
        cpu=[[1 / 100, 1 / 60]],
        step=1 / 50,
        block_rows=[[200.0, 40.0]],
        interval=1.0,
        cpus=64,
    )
    queues, delivered = [], []
    state = State.empty(jobs)
    now = quiet(jobs, 1).at(np.zeros(1, dtype=int)).conditions
    for _ in range(8):
        state, flow = advance(prepare(jobs), state, now, np.ones((1, 2)), np.zeros(1), np.ones(1))
        queues.append(state.queue[0].tolist())
        delivered.append(flow.rows[0, 2])
    # Behind stage 1: +40/s while stage 2 runs freely. Behind stage 2: +10/s, full after 4 s; then stage 2 is held to
    # 50/s and stage 1's queue grows by 50/s: full (200) at 4.8 s, so that from then on all pass 50/s.
    expected = [[40, 10], [80, 20], [120, 30], [160, 40], [200, 40], [200, 40], [200, 40], [200, 40]]
    np.testing.assert_allclose(queues, expected)
    np.testing.assert_allclose(delivered, 50.0)
    assert flow.blocked[0] == pytest.approx([0.5, 1 / 6])

    # The first stage stops (its slots wait for rows that do not come): the queues drain, downstream last.
    slow = Conditions(
        cpu=np.array([[1e9, 1 / 60]]),
        wait=now.wait,
        lost=now.lost,
        slot_bytes=now.slot_bytes,
        cpus=now.cpus,
        memory=now.memory,
    )
    drained = []
    for _ in range(6):
        state, flow = advance(prepare(jobs), state, slow, np.ones((1, 2)), np.zeros(1), np.ones(1))
        drained.append([*state.queue[0].tolist(), flow.rows[0, 2]])
    # Stage 2 makes 50/s against a full queue: 200 -> 0 in 4 s; then 40 rows are left for the trainer.
    np.testing.assert_allclose(
        drained,
        [[150, 40, 50], [100, 40, 50], [50, 40, 50], [0, 40, 50], [0, 0, 40], [0, 0, 0]],
        atol=1e-6,
    )
    assert flow.starved[0, 1] == pytest.approx(1.0)


@few
@given(seeds)
def test_rows_and_bytes_are_conserved(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = eventful_jobs(rng)
    prepared, state = prepare(jobs), State.empty(jobs)
    now = quiet(jobs, 1).at(np.zeros(len(jobs), dtype=int)).conditions
    for _ in range(6):
        slots = rng.integers(1, 30, jobs.present.shape) * jobs.present.astype(float)
        pool = rng.integers(0, 2, len(jobs)) * 10.0
        slots = np.where(pool[:, None] > 0, pool[:, None] * jobs.present, slots)
        after, flow = advance(prepared, state, now, slots, pool, jobs.interval)
        into, out = flow.rows[:, :-1], flow.rows[:, 1:]
        scale = into.max() + state.queue.max()
        np.testing.assert_allclose(state.queue + into, after.queue + out, atol=1e-9 * scale)
        np.testing.assert_allclose(flow.waiting_bytes, after.queue * jobs.row_bytes)
        assert (after.queue >= 0).all()
        assert (after.queue <= np.maximum(flow.room, state.queue) * (1 + 1e-9) + 1e-6).all()
        state = after


@few
@given(seeds)
def test_no_allocation_beats_the_tightest_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = eventful_jobs(rng)
    slots = rng.integers(1, 30, jobs.present.shape)
    # All that was ever delivered, from empty queues: what a queue still holds does not count.
    now = quiet(jobs, 1).at(np.zeros(len(jobs), dtype=int)).conditions
    prepared, state, rows = prepare(jobs), State.empty(jobs), np.zeros(len(jobs))
    for _ in range(12):
        state, flow = advance(prepared, state, now, slots * jobs.present, np.zeros(len(jobs)), jobs.interval)
        rows += flow.rows[:, -1]
    rate = rows / (12 * jobs.interval)
    alone = np.minimum(slots, jobs.most_slots) / np.where(jobs.present, jobs.cpu + jobs.wait, 1e-60)
    bytes_each = jobs.storage_bytes.sum(axis=1)
    bounds = np.stack(
        [
            1 / jobs.step,
            alone.min(axis=1),
            np.floor(jobs.cpus.sum(axis=1)) / (jobs.cpu.sum(axis=1) + jobs.step_cpu),
            jobs.storage_bandwidth / np.maximum(bytes_each, 1e-30),
            jobs.storage_rate / np.maximum(jobs.storage_requests.sum(axis=1), 1e-30),
            jobs.memory_bandwidth / np.maximum(jobs.traffic.sum(axis=1), 1e-30),
        ]
    )
    assert (rate <= bounds.min(axis=0) * (1 + 1e-6)).all()


@few
@given(seeds)
def test_without_waits_and_contention_the_rate_is_that_of_the_slowest_stage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = plain_jobs(rng, wait=0.0, step=1e-12, cpus=4096)
    slots = rng.integers(1, 30, jobs.present.shape)
    _, flow = run(jobs, slots, intervals=3)
    expected = np.where(jobs.present, slots / np.where(jobs.present, jobs.cpu, 1.0), np.inf).min(axis=1)
    np.testing.assert_allclose(flow.rate[:, -1], expected, rtol=1e-9)


@few
@given(seeds)
def test_short_of_processors_they_are_shared_and_all_in_use(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = plain_jobs(rng, wait=0.0, step=1e-12, cpus=2)
    _, flow = run(jobs, 50)
    demand = (flow.rows[:, :-1] * jobs.cpu).sum(axis=1) / jobs.interval
    np.testing.assert_allclose(demand, 2.0, rtol=1e-9)
    np.testing.assert_allclose(flow.cpu.sum(axis=1), 2.0, rtol=1e-9)


@settings(max_examples=4)
@given(seeds)
def test_one_more_slot_never_harms_where_nothing_contends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = plain_jobs(rng, 96)
    slots = rng.integers(1, 10, jobs.present.shape)
    more = slots + (rng.random(slots.shape) < 0.3)
    # From empty queues: rows a queue keeps are not rows delivered, so only what lasts is compared.
    _, flow = run(jobs, slots, intervals=300)
    _, better = run(jobs, more, intervals=300)
    assert (better.rows[:, -1] >= flow.rows[:, -1] * (1 - 1e-6)).all()


@few
@given(seeds, st.floats(0, 1), st.floats(0, 0.1))
def test_one_stage_delivers_what_the_scalability_law_says(seed: int, sigma: float, kappa: float) -> None:
    rng = np.random.default_rng(seed)
    cpu, wait = rng.uniform(1e-6, 1e-4, 2)
    n = int(rng.integers(1, 40))
    jobs = Jobs.of(
        stages=1, cpu=cpu, wait=wait, contention=sigma, coherence=kappa, step=1e-12, cpus=4096 * 16
    )
    _, flow = run(jobs, n, intervals=2)
    law = n / ((cpu + wait) * (1 + sigma * (n - 1) + kappa * n * (n - 1)))
    assert flow.rate[0, 0] == pytest.approx(law)
    assert flow.busy[0, 0] == pytest.approx(n)


@few
@given(seeds)
def test_the_law_adds_work_for_coherence_and_waiting_for_contention(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cpu, wait, n = rng.uniform(0, 1), rng.uniform(0, 1), float(rng.integers(1, 20))
    sigma, kappa = rng.uniform(0, 0.5, 2)
    work, waiting = service(*(np.array([[v]]) for v in (cpu, wait, n, sigma, kappa)))
    assert work[0, 0] == pytest.approx(cpu + (cpu + wait) * kappa * n * (n - 1))
    assert waiting[0, 0] == pytest.approx(wait + (cpu + wait) * sigma * (n - 1))


def test_oversubscription_costs_as_stated() -> None:
    """8 slots on 2 CPUs want 4 times as many: 3 excesses at 10 % each leave 1 / 1.3 of the rate."""
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, cpus=2, oversubscription=0.1)
    _, flow = run(jobs, 8)
    assert flow.rate[0, 0] == pytest.approx(2 / 1e-3 / 1.3)
    # Who measures sees all slots at work.
    assert flow.busy[0, 0] == pytest.approx(8.0)


def test_crowding_makes_each_further_slot_dearer_in_processor_time() -> None:
    """Four slots of 1 ms and crowding 0.5 take 1 + 3 x 0.5 = 2.5 ms each; they wait 1 ms a row besides."""
    jobs = Jobs.of(stages=1, cpu=1e-3, wait=1e-3, crowding=0.5, step=1e-12, cpus=64)
    _, flow = run(jobs, 4)
    assert flow.rate[0, 0] == pytest.approx(4 / 3.5e-3)
    assert flow.cpu[0, 0] / flow.rate[0, 0] == pytest.approx(2.5e-3)
    # With one slot there is no crowd.
    _, alone = run(jobs, 1)
    assert alone.rate[0, 0] == pytest.approx(1 / 2e-3)


def test_a_crowd_on_few_processors_is_slower_than_one_slot_for_each() -> None:
    """On 2 CPUs: 2 slots take 1.5 ms a row, 4 slots 2.5 ms."""
    jobs = Jobs.of(stages=1, cpu=1e-3, crowding=0.5, step=1e-12, cpus=2)
    rates = [run(jobs, n)[1].rate[0, 0] for n in (2, 4)]
    assert rates == pytest.approx([2 / 1.5e-3, 2 / 2.5e-3])


@pytest.mark.parametrize("cause", ["trainer", "stage before"])
@pytest.mark.parametrize("dear", [{"crowding": 0.6}, {"coherence": 0.08}, {"crowding": 0.6, "knee": 0.15}])
def test_slots_without_work_contend_with_nobody(dear: dict[str, Any], cause: str) -> None:
    """Eight slots of which 0.8 are needed: as on a real pipeline, where a row took as long as with one slot."""
    values: dict[str, Any] = {
        "stages": 2,
        "cpus": 2,
        "block_rows": 10.0,
        "cpu": [[1e-5, 1e-3]],
        "step": 1e-12,
    }
    values |= {"step": 1 / 800} if cause == "trainer" else {"wait": [[1 / 800, 0.0]]}
    values |= {name: [[0.0, value]] if name != "knee" else value for name, value in dear.items()}
    few, many = (run(Jobs.of(**values), [1, slots], intervals=40)[1] for slots in (1, 8))
    assert many.rows[0, -1] == pytest.approx(few.rows[0, -1], rel=0.03)
    assert many.cpu[0, 1] / many.rate[0, 1] < 1.6e-3  # of 5 and more where all are at work
    assert many.busy[0, 1] < 1.6


def test_switching_costs_as_stated() -> None:
    """8 slots on 2 CPUs are 6 too many: at 5 % each 1 / 1.3 of the rate is left, and the processors are busy."""
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, cpus=2, switching=0.05)
    _, flow = run(jobs, 8)
    assert flow.rate[0, 0] == pytest.approx(2 / 1e-3 / 1.3)
    assert flow.cpu[0, 0] == pytest.approx(2.0)
    assert flow.busy[0, 0] == pytest.approx(8.0)
    _, enough = run(jobs, 2)
    assert enough.rate[0, 0] == pytest.approx(2 / 1e-3)


def test_at_the_knee_the_rate_is_the_smooth_minimum_of_slots_and_processors() -> None:
    """Two slots of 1 ms and two CPUs are in balance: with p = 4, 2,000 rows/s become 2,000 x 2^(-1/4)."""
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, cpus=2, knee=0.25)
    _, flow = run(jobs, 2)
    assert flow.rate[0, 0] == pytest.approx(2000 * 2**-0.25)
    # Who measures sees both at work all the time: they queue for a processor.
    assert flow.busy[0, 0] == pytest.approx(2.0)
    assert flow.cpu[0, 0] == pytest.approx(2.0 * 2**-0.25)
    # Four slots want twice what there is: (1 + 2^4)^(-1/4) of their 4,000 rows/s.
    assert run(jobs, 4)[1].rate[0, 0] == pytest.approx(4000 * 17**-0.25)
    # One slot on its own processors of many is far from the knee.
    assert run(jobs.with_(cpus=np.array([[64.0]])), 1)[1].rate[0, 0] == pytest.approx(1000, rel=1e-6)


def test_a_trainer_that_is_slower_does_not_feel_the_knee() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1 / 1500, cpus=2, knee=0.25, block_rows=10.0)
    for slots in (2, 4):
        _, flow = run(jobs, slots, intervals=3)
        assert flow.rows[0, -1] == pytest.approx(1500 * jobs.interval[0])


def test_a_pool_no_larger_than_the_processors_has_no_knee() -> None:
    """Two tasks at once never queue for two processors."""
    values: dict[str, Any] = {
        "stages": 2,
        "cpu": [[1e-3, 3e-3]],
        "step": 1e-12,
        "cpus": 2,
        "block_rows": 10.0,
    }
    rates = [rate_of(Jobs.of(**values, knee=width), [[1, 1]], pool=[2], steps=60)[0] for width in (0.0, 0.25)]
    assert rates[0] == pytest.approx(2 / 4e-3, rel=0.01)
    assert rates[1] == rates[0]
    crowded = rate_of(Jobs.of(**values, knee=0.25), [[1, 1]], pool=[4], steps=60)[0]
    assert crowded == pytest.approx(1000 * 17**-0.25, rel=0.01)


def test_slots_that_wait_are_not_switched() -> None:
    """20 slots of which two at a time compute: nothing is lost on two processors."""
    jobs = Jobs.of(stages=1, cpu=1e-4, wait=9e-4, step=1e-12, cpus=2, switching=0.05)
    _, flow = run(jobs, 20)
    assert flow.rate[0, 0] == pytest.approx(20 / 1e-3)


def test_a_slot_that_waits_takes_no_processor() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-4, wait=9e-4, step=1e-12, cpus=2)
    _, flow = run(jobs, 20)
    assert flow.rate[0, 0] == pytest.approx(20 / 1e-3)
    assert flow.cpu[0, 0] == pytest.approx(2.0)
    assert not flow.starved.any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"storage_bytes": [[100.0, 0.0]], "storage_bandwidth": 1e5}, 1e3),
        ({"storage_requests": [[0.01, 0.0]], "storage_rate": 5.0}, 500.0),
        ({"traffic": [[1e3, 1e3]], "memory_bandwidth": 1e6}, 500.0),
        ({"step": 1 / 700}, 700.0),
        ({"cpus": [[4.0, 4.0]], "nic": [[4e4, 1.0]], "row_bytes": 100.0}, 800.0),
        ({"most_slots": [[1.0, 8.0]]}, 1000.0),
    ],
    ids=["storage bytes", "storage requests", "memory bandwidth", "trainer", "network", "most slots"],
)
def test_each_shared_limit_holds_alone(values: dict[str, Any], expected: float) -> None:
    given_values: dict[str, Any] = {"step": 1e-12, "cpus": 64.0, "cpu": 1e-3} | values
    _, flow = run(Jobs.of(stages=2, **given_values), 8, intervals=400)
    assert flow.rows[0, -1] / 5.0 == pytest.approx(expected, rel=1e-6)


def test_where_storage_is_short_slots_queue_for_it_and_where_memory_is_they_work() -> None:
    waits = Jobs.of(
        stages=1, cpu=5e-4, wait=5e-4, storage_bytes=100.0, storage_bandwidth=2e5, step=1e-12, cpus=64
    )
    _, flow = run(waits, 4)
    # Half of the 4,000 rows/s: work as it is for so many rows, and no slot is idle.
    assert (flow.cpu[0, 0], flow.busy[0, 0]) == pytest.approx((1.0, 4.0))
    works = Jobs.of(stages=1, cpu=1e-3, traffic=100.0, memory_bandwidth=2e5, step=1e-12, cpus=64)
    _, flow = run(works, 4)
    assert (flow.cpu[0, 0], flow.busy[0, 0]) == pytest.approx((4.0, 4.0))
    assert flow.traffic == pytest.approx(1.0)
    # 8 slots on 2 processors, which 2 of them take up: the others queue, and none is idle.
    _, flow = run(works.with_(cpus=np.array([[2.0]]), memory_bandwidth=np.array([1e5])), 8)
    assert (flow.cpu[0, 0], flow.busy[0, 0]) == pytest.approx((2.0, 8.0))


@settings(max_examples=1)
@given(seeds)
def test_what_storage_is_too_slow_for_is_what_all_slots_queue_for(seed: int) -> None:
    """As on a real link that is full: load is at work all the time, the queue behind it empty, others starved."""
    rng = np.random.default_rng(seed)
    jobs = plain_jobs(rng, 240, step=1e-12, cpus=4096, contention=0.05, coherence=1e-4, crowding=0.1)
    reads = np.zeros(jobs.present.shape)
    reads[:, 0] = 100.0
    slots = np.where(jobs.present, rng.integers(1, 40, reads.shape), 0.0)
    pool = np.where(rng.random(len(jobs)) < 0.5, slots[:, 0], 0.0)
    slots = np.where(pool[:, None] > 0, pool[:, None] * jobs.present, slots)
    _, free = run(jobs, slots, pool=pool, intervals=100)
    bandwidth = 100.0 * free.rate[:, 0] * rng.uniform(0.1, 0.9, len(jobs))
    short = jobs.with_(storage_bytes=reads, storage_bandwidth=bandwidth)
    state, flow = run(short, slots, pool=pool, intervals=400)
    np.testing.assert_allclose(flow.rate[:, 0], bandwidth / 100.0, rtol=1e-6)
    at_work = np.where(pool > 0, flow.busy.sum(axis=1, where=jobs.present), flow.busy[:, 0])
    np.testing.assert_allclose(at_work, slots[:, 0], rtol=1e-9)
    own = pool == 0
    assert not flow.starved[own, 0].any()
    assert not flow.blocked[own].any()
    assert not state.queue[own].any()
    # Those that queue for it contend with nobody: a row is no dearer than where all are served.
    assert (flow.cpu[own] / flow.rate[own] <= free.cpu[own] / free.rate[own] * (1 + 1e-9))[
        jobs.present[own]
    ].all()


def test_slots_that_queue_for_storage_take_no_processor_from_others() -> None:
    """64 slots of 1 ms and coherence 0.001 at once would take 5 ms of 4 processors for each of 1,000 rows/s."""
    jobs = Jobs.of(
        stages=2, cpu=1e-3, coherence=[[1e-3, 0.0]], storage_bytes=[[1.0, 0.0]], storage_bandwidth=1e3, cpus=4
    )
    _, flow = run(jobs, [64, 2], intervals=2)
    assert flow.rows[0, -1] == pytest.approx(5000.0)
    assert flow.cpu[0] == pytest.approx([1.0, 1.0], rel=0.01)
    assert flow.busy[0] == pytest.approx([64.0, 1.0])


def test_a_full_network_blocks_what_is_before_it() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-3, cpus=[[4.0, 4.0]], nic=[[4e4, 1.0]], row_bytes=100.0, block_rows=10.0)
    state, flow = run(jobs, 2, intervals=20)
    assert flow.rows[0, -1] == pytest.approx(800 * 5.0)
    assert flow.blocked[0] == pytest.approx([0.6, 0.6])
    assert state.queue[0] == pytest.approx([20.0, 20.0])


def test_a_shared_pool_is_the_sum_over_its_stages() -> None:
    """n slots, stages of 1, 2 and 3 ms: n / 6 ms, each stage having the part of them that its cost has."""
    jobs = Jobs.of(stages=3, cpu=[[1e-3, 2e-3, 3e-3]], step=1e-12, cpus=64)
    for intervals in (1, 30):
        _, flow = run(jobs, 12, pool=12, intervals=intervals)
        assert flow.rate[0] == pytest.approx([12 / 6e-3] * 3)
        assert flow.busy[0] == pytest.approx([2, 4, 6])


def test_a_shared_pool_drains_queues_first_and_fills_them_with_what_is_left() -> None:
    # 3 slots, 1 ms each of two stages, 2 s: 6,000 slot ms. 1,000 rows wait for stage 2: d of them cost
    # d + max(d - 1,000, 0) ms, so 3,500 are delivered.
    jobs = Jobs.of(stages=2, cpu=1e-3, step=1e-12, cpus=64, interval=2.0)
    state, flow = run(jobs, 3, pool=3, queue=[[1000.0, 0.0]])
    np.testing.assert_allclose(flow.rows[0], [2500, 3500, 3500])
    assert state.queue[0].tolist() == [0, 0]
    # A trainer that takes 1,000 rows: those cost 2,000 slot ms, the other 4,000 fill queues (of 65,536 rows).
    jobs = jobs.with_(step=np.array([2e-3]))
    state, flow = run(jobs, 3, pool=3)
    assert flow.rows[0, -1] == pytest.approx(1000)
    assert flow.rows[0, :-1].sum() == pytest.approx(6000)


@few
@given(seeds)
def test_a_pool_delivers_as_much_as_the_best_search_finds(seed: int) -> None:
    """By trying: the most rows d for which the work that they still need fits the pool."""
    rng = np.random.default_rng(seed)
    stages = int(rng.integers(1, 6))
    queue = rng.uniform(0, 50, (1, stages)) * (rng.random((1, stages)) < 0.5)
    took = rng.uniform(0.01, 1, (1, stages))
    work = rng.uniform(1, 50, 1)
    most = np.full((1, stages + 1), 1e9)
    rows = pooled_flows(most, queue, took, work)
    low, high = 0.0, 1e9
    for _ in range(200):
        tried = (low + high) / 2
        needed = sum(took[0, i] * max(tried - queue[0, i:].sum(), 0.0) for i in range(stages))
        low, high = (tried, high) if needed <= work[0] else (low, tried)
    assert rows[0, -1] == pytest.approx(low)
    assert (rows[:, :-1] * took).sum() <= work[0] * (1 + 1e-9)


def test_a_pool_holds_the_largest_working_sets_first_and_no_more_than_it_has() -> None:
    held = pooled_peak(np.array([[4.0, 1.0, 0.0]]), np.array([9.0]), np.array([[1.0, 5.0, 3.0]]))
    assert held.tolist() == [[6.0, 3.0, 0.0]]
    assert (
        pooled_peak(np.array([[4.0, 1.0, 0.0]]), np.array([100.0]), np.array([[1.0, 5.0, 3.0]])).sum() == 11.0
    )


def test_added_slots_work_after_the_delay() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, cpus=64, resize_delay=2.0, interval=8.0)
    prepared, state = prepare(jobs), State.empty(jobs)
    now = quiet(jobs, 1).at(np.zeros(1, dtype=int)).conditions
    state, first = advance(prepared, state, now, np.array([[5.0]]), np.zeros(1), jobs.interval)
    # 1 slot for 8 s and 4 more for 6 s.
    assert first.rows[0, 0] == pytest.approx((8 + 4 * 6) * 1e3)
    state, second = advance(prepared, state, now, np.array([[5.0]]), np.zeros(1), jobs.interval)
    assert second.rows[0, 0] == pytest.approx(5 * 8 * 1e3)
    _, third = advance(prepared, state, now, np.array([[2.0]]), np.zeros(1), jobs.interval)
    assert third.rows[0, 0] == pytest.approx(2 * 8 * 1e3)


def test_a_delay_may_last_several_intervals_and_slots_taken_away_are_those_that_had_not_come() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, cpus=64, resize_delay=20.0, interval=8.0)
    prepared, state = prepare(jobs), State.empty(jobs)
    now = quiet(jobs, 1).at(np.zeros(1, dtype=int)).conditions

    def rows_with(slots: float) -> float:
        nonlocal state
        state, flow = advance(prepared, state, now, np.array([[slots]]), np.zeros(1), jobs.interval)
        return float(flow.rows[0, 0]) / 1e3

    # 1 slot throughout, and 4 more after 20 s: for the last 4 of 24.
    assert [rows_with(5) for _ in range(4)] == pytest.approx([8, 8, 8 + 4 * 4, 5 * 8])
    # 2 of 3 that are still on their way are not wanted any more; what is left comes when it was to come.
    assert [rows_with(slots) for slots in (8, 6, 6, 6)] == pytest.approx([40, 40, 40 + 4, 6 * 8])
    # Every slot added puts off those on their way a little: they join together, and not never.
    assert sum(rows_with(6 + more) for more in range(1, 9)) > 6 * 8 * 8


def test_memory_is_base_slots_and_queues_on_nodes_by_their_cpus() -> None:
    jobs = Jobs.of(
        stages=2,
        cpu=[[1e-3, 2e-3]],
        slot_bytes=[[100.0, 10.0]],
        row_bytes=[[7.0, 3.0]],
        block_rows=[[50.0, 20.0]],
        base_bytes=1000.0,
        cpus=[[6.0, 2.0]],
        memory=[[1e6, 1e6]],
        step=1e-12,
    )
    state, flow = run(jobs, [3, 2], intervals=5)
    queued = (state.queue * [[7.0, 3.0]]).sum()
    shared = 3 * 100 + 2 * 10 + queued
    assert queued > 0
    assert flow.memory[0] == pytest.approx([1000 + 0.75 * shared, 0.25 * shared])
    assert not flow.killed[0]
    _, flow = run(jobs.with_(memory=np.array([[1e6, 0.24 * shared]])), [3, 2], intervals=5)
    assert flow.killed[0]


def test_all_queues_together_hold_no_more_bytes_than_allowed() -> None:
    jobs = Jobs.of(stages=3, cpu=1e-4, row_bytes=10.0, block_rows=1e4, queue_bytes=5e4, step=1e-2)
    state, flow = run(jobs, 4, intervals=50)
    assert (state.queue * 10).sum() == pytest.approx(5e4)
    assert flow.queued_bytes[0] == pytest.approx(5e4)


@few
@given(seeds)
def test_absent_stages_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = eventful_jobs(rng, 4)
    wide = jobs.widened(stages=jobs.stages + 3, nodes=4, events=5)
    slots = rng.integers(1, 20, jobs.present.shape)
    wider = np.pad(slots, ((0, 0), (0, 3)))
    _, flow = run(jobs, slots, intervals=4)
    _, other = run(wide, wider, intervals=4)
    np.testing.assert_allclose(other.rows[:, -1], flow.rows[:, -1])
    np.testing.assert_allclose(other.memory[:, :2], flow.memory)
    for name in ("rate", "busy", "cpu", "starved", "blocked"):
        ours, theirs = getattr(flow, name), getattr(other, name)[:, : jobs.stages]
        np.testing.assert_allclose(theirs[jobs.present], ours[jobs.present], atol=1e-9, err_msg=name)


@few
@given(seeds)
def test_shares_of_time_are_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = eventful_jobs(rng)
    slots = rng.integers(1, 30, jobs.present.shape)
    _, flow = run(jobs, slots, intervals=int(rng.integers(1, 5)))
    present = jobs.present
    total = flow.busy / np.minimum(slots, jobs.most_slots) + flow.starved + flow.blocked
    # Against the slots that work: those that come late are at work for a part of the interval only.
    assert (total[present] <= 1 + 1e-9).all()
    for share in (flow.starved, flow.blocked):
        assert ((share >= -1e-12) & (share <= 1 + 1e-12))[present].all()
    assert not (flow.starved * flow.blocked)[present].any()
    assert (flow.busy[present] <= np.broadcast_to(slots, present.shape)[present] + 1e-9).all()
    assert (flow.cpu.sum(axis=1) <= np.floor(jobs.cpus.sum(axis=1)) + 1e-6).all()


@pytest.mark.parametrize(
    "job",
    [
        {"cpu": 1e-3, "cpus": 4.0, "oversubscription": 0.2, "coherence": 0.01},
        {"cpu": 1e-3, "cpus": 4.0, "switching": 0.05, "crowding": 0.5},
    ],
    ids=["oversubscription", "switching"],
)
def test_slots_that_queue_for_a_processor_are_at_work_and_contend(job: dict[str, Any]) -> None:
    """Who measures must not see one stage idle and cheap that is all that a job waits for."""
    _, flow = run(Jobs.of(stages=1, step=1e-12, **job), 32)
    assert flow.busy[0, 0] == pytest.approx(32.0, rel=1e-3)
    assert flow.starved[0, 0] + flow.blocked[0, 0] == pytest.approx(0.0, abs=1e-3)


def test_slots_that_queue_for_a_processor_make_work_as_dear_as_it_is() -> None:
    """256 slots of 1 ms with coherence 0.001 take 66 ms a row, on 32 CPUs as on a thousand."""
    for cpus in (32.0, 1024.0):
        _, flow = run(Jobs.of(stages=1, cpu=1e-3, coherence=1e-3, step=1e-12, cpus=cpus), 256)
        assert flow.cpu[0, 0] / flow.rate[0, 0] == pytest.approx(1e-3 * (1 + 1e-3 * 256 * 255))
        assert flow.cpu[0, 0] == pytest.approx(min(cpus, 256.0))
