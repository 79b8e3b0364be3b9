"""The searches against a plain transcription of what they are described to do, one job and one step at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.agents.autotune_model import Tuned, hill_climb, output_time, stage_based, wait_time

TIMES = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=5)


def plain_wait(producer: float, consumer: float, buffer: float) -> float:
    if producer == 0 or consumer == 0:
        return producer
    if producer == consumer:
        return producer / (buffer + 1)
    ratio = consumer / producer
    return producer * (1 - ratio) / (1 - ratio ** (buffer + 1))


def plain_output(times: list[float], workers: list[int]) -> float:
    out = times[0] / workers[0]
    for i in range(1, len(times)):
        consumer = sum(t / n for t, n in zip(times[i:], workers[i:], strict=True))
        out = times[i] / workers[i] + plain_wait(out, consumer, workers[i])
    return out


def plain_climb(
    times: list[float], size: list[float], most: int, ram: float, cpus: float, stop: bool
) -> list[int]:
    workers = [1] * len(times)
    best = -1
    while True:
        now = plain_output(times, workers)
        if sum(n * b for n, b in zip(workers, size, strict=True)) > ram:
            if best >= 0:
                workers[best] -= 1
            return workers
        if all(n >= most for n in workers):
            return workers
        if stop and now < sum(times) / cpus:
            return workers
        best, best_gain = -1, -1e-9
        for i in range(len(times)):
            if workers[i] < most:
                tried = [n + (i == j) for j, n in enumerate(workers)]
                gain = now - plain_output(times, tried)
                if gain > best_gain:
                    best, best_gain = i, gain
        if best < 0:
            return workers
        workers[best] += 1


def tuned(times: list[float], size: list[float], most: float, ram: float, cpus: float) -> Tuned:
    # An absent stage with numbers that would show stands behind.
    return Tuned(
        present=np.array([[True] * len(times) + [False]]),
        self_time=np.array([[*times, 5.0]]),
        element_bytes=np.array([[*size, 1e12]]),
        most=np.array([most]),
        ram_budget=np.array([ram]),
        cpu_budget=np.array([cpus]),
    )


def test_wait_time_by_hand() -> None:
    # Producer 4 s, consumer 2 s, room for one: empty with probability (1 - 1/2) / (1 - 1/4) = 2/3.
    got = wait_time(np.array([4.0, 2.0, 3.0, 0.0, 5.0]), np.array([2.0, 4.0, 3.0, 1.0, 0.0]), np.ones(5))
    np.testing.assert_allclose(got, [8 / 3, 2 * (1 / 3), 1.5, 0.0, 5.0])


def test_the_wait_does_not_overflow_with_large_buffers() -> None:
    got = wait_time(np.array([1e-9, 1e3]), np.array([1e3, 1e-9]), np.array([4096.0, 4096.0]))
    np.testing.assert_allclose(got, [0.0, 1e3])


@given(times=TIMES, data=st.data())
def test_output_time_agrees_with_the_plain_one(times: list[float], data: st.DataObject) -> None:
    workers = data.draw(st.lists(st.integers(1, 32), min_size=len(times), max_size=len(times)))
    got = output_time(
        np.array([[*times, 9.0]]),
        np.array([[*map(float, workers), 1.0]]),
        np.array([[True] * len(times) + [False]]),
    )
    assert got[0] == pytest.approx(plain_output(times, workers), rel=1e-9)


@settings(max_examples=60)
@given(times=TIMES, most=st.integers(1, 9), data=st.data())
def test_the_climb_takes_the_plain_ones_steps(times: list[float], most: int, data: st.DataObject) -> None:
    size = data.draw(st.lists(st.floats(1, 10), min_size=len(times), max_size=len(times)))
    ram = data.draw(st.floats(1, 400))
    cpus = float(most)
    stop = data.draw(st.booleans())
    both, stands = hill_climb(tuned(times, size, cpus, ram, cpus), cpu_stop=stop)
    got = both[0]
    want = plain_climb(times, size, most, ram, cpus, stop)
    assert got[-1] == 0
    assert stands[0] == (sum(n * b for n, b in zip(want, size, strict=True)) <= ram)
    if (got[:-1] != want).any():
        # Steps whose gains differ only by rounding may be taken in another order: as good a place all the same.
        assert plain_output(times, got[:-1].astype(int).tolist()) == pytest.approx(
            plain_output(times, want), rel=1e-6
        )


def test_without_the_stop_by_processors_every_stage_gets_its_most() -> None:
    got, _ = hill_climb(tuned([0.1, 0.4, 0.2], [1, 1, 1], 12.0, 1e9, 12.0), cpu_stop=False)
    np.testing.assert_array_equal(got, [[12, 12, 12, 0]])


def test_a_climb_may_get_stuck() -> None:
    # More workers of the last stage let the ones before wait more, in the model: a step that costs.
    got, _ = hill_climb(tuned([1.0, 1.0, 1.0, 0.125], [1, 1, 1, 1], 2.0, 1e9, 2.0), cpu_stop=False)
    np.testing.assert_array_equal(got, [[2, 2, 2, 1, 0]])


def test_with_it_the_climb_ends_when_processors_are_used_up() -> None:
    got = hill_climb(tuned([0.1, 0.4], [1, 1], 12.0, 1e9, 12.0), cpu_stop=True)[0][0]
    assert 2 < got.sum() < 24
    assert got[1] > got[0]


def test_the_step_beyond_the_memory_budget_is_taken_back() -> None:
    got, stands = hill_climb(tuned([0.1, 0.4], [10, 10], 12.0, 55.0, 12.0), cpu_stop=False)
    assert got.sum() == 5
    assert stands[0]


def test_a_round_that_does_not_fit_from_the_start_is_dropped() -> None:
    _, stands = hill_climb(tuned([0.1, 0.4], [10, 10], 12.0, 15.0, 12.0), cpu_stop=False)
    assert not stands[0]


def test_jobs_do_not_see_each_other() -> None:
    rng = np.random.default_rng(3)
    many = Tuned(
        present=np.ones((40, 4), dtype=bool),
        self_time=rng.lognormal(-3, 1, (40, 4)),
        element_bytes=rng.uniform(1, 9, (40, 4)),
        most=rng.integers(2, 9, 40).astype(float),
        ram_budget=rng.uniform(10, 200, 40),
        cpu_budget=rng.integers(2, 9, 40).astype(float),
    )
    together, _ = hill_climb(many, cpu_stop=True)
    alone = np.concatenate([hill_climb(many.rows(np.arange(40) == i), cpu_stop=True)[0] for i in range(40)])
    np.testing.assert_array_equal(together, alone)


def plain_stages(
    times: list[float], size: list[float], most: int, ram: float, target: float
) -> list[int] | None:
    workers = [1] * len(times)
    while True:
        slowest = max(range(len(times)), key=lambda i: times[i] / workers[i])
        if times[slowest] / workers[slowest] <= target or workers[slowest] >= most:
            return workers
        workers[slowest] += 1
        if sum(n * b for n, b in zip(workers, size, strict=True)) > ram:
            return None


@given(times=TIMES, most=st.integers(1, 20), data=st.data())
def test_the_stage_based_search_agrees_with_the_plain_one(
    times: list[float], most: int, data: st.DataObject
) -> None:
    size = data.draw(st.lists(st.floats(1, 10), min_size=len(times), max_size=len(times)))
    ram = data.draw(st.floats(sum(size), 400))
    target = data.draw(st.floats(1e-4, 1.0))
    ties = {round(a / b, 9) for a in times for b in range(1, most + 1)}
    if len(ties) < len(times) * most or any(abs(tie - target) <= 1e-8 for tie in ties):
        return  # which side of a tie is taken is rounding
    got, stands = stage_based(tuned(times, size, float(most), ram, 1.0), np.array([target]))
    want = plain_stages(times, size, most, ram, target)
    assert stands[0] == (want is not None)
    if want is not None:
        np.testing.assert_array_equal(got[0, :-1], want)
