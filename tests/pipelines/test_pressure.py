"""When next to no memory is left, by hand."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from intune.pipelines.pressure import (
    CALM_S,
    EVERY_S,
    FREE_EVERY_S,
    LEAST_SHARE,
    MOST_BYTES,
    MOST_SHARE,
    PLENTY,
    SAID_S,
    SUDDEN_S,
    Pressure,
)

LIMIT = 1_000_000_000


class World:
    def __init__(self, left: int, limit: int = LIMIT) -> None:
        self.now, self.left, self.limit = 0.0, left, limit
        self.ended = self.looks = self.released = 0
        self.pressure = Pressure(self.read, release=self.release, clock=lambda: self.now)

    def read(self) -> tuple[int, int]:
        self.looks += 1
        return self.limit, self.left

    def release(self) -> None:
        self.released += 1

    def after(self, seconds: float, left: int, running: int = 0) -> bool:
        self.now, self.left = self.now + seconds, left
        return self.pressure(running, self.ended)

    def most(self, running: int = 0) -> int:
        """Tasks at once, with all that may begin begun beside `running`."""
        while running < 1000 and not self.pressure(running, self.ended):
            running += 1
        return running


def test_begins_below_the_least_share_and_ends_half_as_much_above_it() -> None:
    kept = int(LEAST_SHARE * LIMIT)
    world = World(kept)
    assert not world.after(1.0, kept)
    assert world.after(2 * SUDDEN_S, kept - 1)
    assert world.after(2 * SUDDEN_S, int(1.5 * kept) - 1), "not on and off with every block"
    assert not world.after(2 * SUDDEN_S, int(1.5 * kept))


def test_does_not_look_more_often_than_said() -> None:
    world = World(LIMIT)
    assert not world.after(0.0, LIMIT)
    for _ in range(10):
        assert not world.after(EVERY_S / 20, 0)
    assert world.looks == 1
    assert world.after(EVERY_S, 0)
    assert world.looks == 2


def test_keeps_as_much_free_as_was_seen_to_go_at_once_and_forgets_it() -> None:
    left = LIMIT // 2
    world = World(left)
    assert not world.after(0.0, left)
    assert not world.after(EVERY_S, left - int(0.06 * LIMIT))
    assert not world.after(2 * SUDDEN_S, int(0.07 * LIMIT)), "what takes long is no fall"
    assert world.after(EVERY_S, int(0.05 * LIMIT)), "as much again might go at once"
    assert not world.after(100 * CALM_S, int(0.05 * LIMIT)), "forgotten"


def test_keeps_no_more_free_than_so_much_whatever_was_seen() -> None:
    world = World(LIMIT)
    assert not world.after(0.0, LIMIT)
    assert not world.after(EVERY_S, int(MOST_SHARE * LIMIT) + 1)
    assert world.after(EVERY_S, int(MOST_SHARE * LIMIT) - 1)


def test_of_a_large_machine_no_more_than_so_much_is_kept_free() -> None:
    world = World(MOST_BYTES, limit=1 << 42)
    assert not world.after(0.0, MOST_BYTES)
    assert world.after(1.0, MOST_BYTES - 1)


def test_with_plenty_any_number_may_begin_at_once() -> None:
    assert World(PLENTY, limit=2 * PLENTY).most() == 1000
    assert World(PLENTY - 1, limit=2 * PLENTY).most() == 1, "one, to begin with: what it takes is not known"
    assert World(PLENTY, limit=3 * PLENTY).most() == 1, "much, but most is gone"


@pytest.mark.parametrize(("share", "growth"), [(0.6, 2.0), (0.3, 1.5), (0.2, 1.1)])
def test_their_number_grows_only_as_tasks_end(share: float, growth: float) -> None:
    world = World(int(share * LIMIT))
    most = [world.most()]
    for _ in range(10):
        for _ in range(2):  # a look while nothing ends
            world.now += EVERY_S
            assert world.most(most[-1]) <= most[-1] + 1
        world.ended += most[-1]
        world.now += EVERY_S
        most.append(world.most(most[-1]))
    assert most[0] == 1
    for before, after in pairwise(most):
        assert before < after <= growth * before + 2.0, "that many times as many, a generation"
    assert not world.after(10 * CALM_S, int(share * LIMIT), running=1)
    assert world.most(1) == most[-1], "what was once is known"


def test_nobody_is_added_where_as_much_as_goes_at_once_would_not_fit_twice() -> None:
    kept = int(LEAST_SHARE * LIMIT)
    world = World(2 * kept - 1)
    assert world.most() == 1
    world.ended, world.now = 50, 1.0
    assert world.most() == 1


def test_when_memory_was_nearly_gone_half_as_many_begin_anew() -> None:
    world = World(int(0.3 * LIMIT))
    most = 0
    for _ in range(12):
        most = world.most(most)
        world.ended += most
        world.now += EVERY_S
    most = world.most(most)
    assert most > 16
    assert world.after(2 * SUDDEN_S, 1, running=most)
    assert world.released == 1, "allocators are asked for what they keep"
    assert world.after(0.9 * FREE_EVERY_S, 1, running=most)
    assert world.released == 1
    world.now, world.left = world.now + 2 * SUDDEN_S, int(0.3 * LIMIT)
    assert world.most() == most // 2


def test_where_nobody_knows_there_is_no_pressure() -> None:
    assert not Pressure(lambda: None, clock=lambda: 0.0)(99, 0)


def test_says_so_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    world = World(0)
    with caplog.at_level(logging.WARNING, "intune"):
        for _ in range(10):
            assert world.after(SAID_S / 8, 0)
    assert len(caplog.records) == 2
    assert "0 MiB of the 954 MiB" in caplog.records[0].getMessage()


def test_the_least_that_was_left_lately_is_remembered() -> None:
    """A function's temporaries come and go within an interval."""
    world = World(LIMIT)
    assert world.pressure.least_left(10.0) is None
    for second, left in enumerate((900, 300, 800, 700), start=1):
        world.after(1.0, left * 1_000_000)
        assert world.now == second
    assert [world.pressure.least_left(seconds) for seconds in (0.5, 1.5, 2.5, 60.0)] == [
        700_000_000,
        700_000_000,
        300_000_000,
        300_000_000,
    ]
    assert world.pressure.least_left(0.0) == 700_000_000
    world.now += 5.0
    assert world.pressure.least_left(1.0) is None


def test_of_a_wave_no_more_begin_at_once_than_find_room() -> None:
    """Tasks that ended together could begin together: what each of them takes shows only once it is at work."""
    world = World(int(0.45 * LIMIT))
    for _ in range(40):  # sixteen at work take 20 MB each, and give it back
        for left in (0.45, 0.13):
            world.after(EVERY_S, int(left * LIMIT), running=16)
            world.ended += 16
    world.after(EVERY_S, int(0.2 * LIMIT), running=1)
    world.after(EVERY_S, int(0.2 * LIMIT), running=1)
    # 200 MB are left, of which 100 are kept free: five more than the one that has taken its part already.
    assert world.most(running=1) == 6
    # Only after two more looks have they taken theirs.
    world.after(EVERY_S, int(0.2 * LIMIT), running=6)
    assert world.most(running=6) == 6
    world.after(EVERY_S, int(0.2 * LIMIT), running=6)
    assert world.most(running=6) == 11


def test_memory_that_went_while_nothing_was_at_work_is_no_tasks() -> None:
    world = World(int(0.45 * LIMIT))
    world.after(EVERY_S, int(0.45 * LIMIT))
    world.after(EVERY_S, int(0.15 * LIMIT))
    assert world.pressure._each == 0
