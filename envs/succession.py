"""`Succession`: which jobs come next in a vectorised environment, in which rows, and their episodes begun."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intune.envs.episodes import Episodes
from intune.envs.job_sources import Jobbing
from intune.envs.jobs import Floats, Ints
from intune.envs.settings import EnvSettings

RESERVE = 128
"""Episodes begun at once where fewer end, and kept for those that end next: beginning one alone costs nearly as much
as many."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The next episodes of some jobs of one chunk.

    Attributes:
        chunk: its number.
        rows: places in it, ascending.
        ids: jobs whose episodes are still to begin, one for each place; None where `ready` are theirs.
        ready: episodes of which those at `chosen` are taken.
    """

    chunk: int
    rows: Ints
    ids: Ints | None = None
    ready: Episodes | None = None
    chosen: Ints | None = None

    def replaces(self, chunk: Episodes) -> bool:
        """Whether all jobs of `chunk`, which is the turn's, begin anew."""
        return self.ids is not None and len(self.ids) == len(chunk)


class Succession:
    """Takes jobs one after another, in the order of the rows that need one.

    Args:
        source: of the jobs.
        settings: of the environment.
        stages: width S of all arrays.
        parts: rows of each chunk.
    """

    def __init__(self, source: Jobbing, settings: EnvSettings, *, stages: int, parts: list[slice]) -> None:
        self._source, self._settings, self._stages, self._parts = source, settings, stages, parts
        self._next: int | None = None
        self._reserve: Episodes | None = None
        self._used = 0  # of the reserve

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._next is not None

    def start(self, first: int) -> None:
        """The next job is number `first`."""
        self._next, self._reserve = first, None

    def numbers(self, count: int) -> Ints:
        """The jobs whose turn it is."""
        assert self._next is not None
        if self._reserve is not None:  # not handed out yet
            self._next -= len(self._reserve) - self._used
            self._reserve = None
        self._next += count
        return np.arange(self._next - count, self._next)

    def begin(self, ids: Ints, slots: Floats | None = None) -> Episodes:
        """Episodes of the jobs `ids`; threads may call it at the same time."""
        return Episodes(self._source, self._settings, ids, stages=self._stages, slots=slots)

    def turns(self, rows: Ints) -> list[Turn]:
        """Who comes next in `rows` (ascending) of all chunks."""
        turns: list[Turn] = []
        while rows.size:
            left = len(self._reserve) - self._used if self._reserve is not None else 0
            if not left and rows.size >= RESERVE:
                ids = self.numbers(len(rows))
                return turns + [
                    Turn(chunk=at, rows=mine, ids=ids[first:last])
                    for at, mine, first, last in self._split(rows)
                ]
            if self._reserve is None or not left:
                self._reserve = None
                self._reserve, self._used, left = self.begin(self.numbers(RESERVE)), 0, RESERVE
            count = min(rows.size, left)
            chosen = np.arange(self._used, self._used + count)
            turns += self.turns_of(rows[:count], self._reserve, chosen)
            self._used += count
            rows = rows[count:]
        return turns

    def turns_of(self, rows: Ints, ready: Episodes, chosen: Ints) -> list[Turn]:
        """Those in which the episodes of `ready` at `chosen` come into `rows` (ascending) of all chunks."""
        return [
            Turn(chunk=at, rows=mine, ready=ready, chosen=chosen[first:last])
            for at, mine, first, last in self._split(rows)
        ]

    def take(self, turn: Turn, chunk: Episodes) -> Episodes:
        """The chunk after `turn`: changed in place, or another where all of it begins anew."""
        if turn.ids is None:
            assert turn.ready is not None
            chunk.adopt(turn.rows, turn.ready, turn.chosen)
            return chunk
        begun = self.begin(turn.ids)
        if turn.replaces(chunk):
            return begun
        chunk.adopt(turn.rows, begun, slice(None))
        return chunk

    def _split(self, rows: Ints) -> list[tuple[int, Ints, int, int]]:
        """Chunk, places in it, first and last + 1 of `rows`, for every chunk that has any."""
        ends = np.searchsorted(rows, [part.stop for part in self._parts]).tolist()
        begins = [0, *ends[:-1]]
        return [
            (at, rows[first:last] - part.start, first, last)
            for at, (part, first, last) in enumerate(zip(self._parts, begins, ends, strict=True))
            if last > first
        ]
