"""Batches that are made sooner than they are handed from a thread to another: the trainer makes them itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from intune.adapters.dataloader.inspection.choice import Choice
from intune.adapters.dataloader.inspection.probe import Measurement, thread_seconds

CHEAP_S = 0.0005
"""Seconds of a batch up to which threads bring nothing: they take as long of Python's lock to hand it over, which the
training wants too (with threads a batch of a `TensorDataset` costs 0.3 ms of it, without 0.1)."""

DEAR_S, BATCHES = 0.002, 32
"""Mean seconds of a batch from which on those are dear that were cheap, and of how many; well apart, lest chance
decides."""


@dataclass(slots=True)
class Cheap:
    """Of a loader whose first batches were, or of whose nothing is known yet.

    Attributes:
        choice: where they are made.
        otherwise: where they are to be made once they are too dear for that.
        most_s: mean seconds of a batch up to which they are not.
        lacked: seconds in which this thread has lacked a processor so far.
    """

    choice: Choice
    otherwise: Choice
    most_s: float
    lacked: Callable[[], float] = lambda: thread_seconds()[1]
    _count: int | None = None
    _wall_s: float = 0.0
    _cpu_s: float = 0.0
    _lacked_s: float = 0.0

    @classmethod
    def of(cls, choice: Choice, measured: Measurement) -> Cheap | None:
        """Of code that may run in threads; None of other, or if its first batches were dear. They may have taken some
        times as long as others will, so that where they were neither cheap nor dear the next ones tell."""
        if choice.kind != "thread" or measured.wall_s > max(CHEAP_S, DEAR_S):
            return None
        took = f"a batch takes {1e3 * measured.wall_s:.3g} ms"
        if measured.wall_s <= CHEAP_S:
            reason, most_s = f"{took}, too little to be handed over by another thread", DEAR_S
        else:
            reason, most_s = f"{took} at first; if others do, a thread will make them ahead", CHEAP_S
        return cls(replace(choice, kind="here", reason=reason), choice, most_s)

    @classmethod
    def until_known(cls, choice: Choice) -> Cheap | None:
        """Of code that may run in threads, of which no batch was made yet; None of other."""
        if choice.kind != "thread":
            return None
        reason = f"{choice.reason}; if its batches are dear, a thread will make them ahead"
        return cls(replace(choice, kind="here", reason=reason), choice, CHEAP_S)

    def took(self, wall_s: float, cpu_s: float) -> Choice | None:
        """A batch took so long; the other choice once they are too dear."""
        if self._count is None:  # what was lacked in this one is in there already
            self._count, self._wall_s, self._cpu_s, self._lacked_s = 0, 0.0, 0.0, self.lacked()
            return None
        self._count += 1
        self._wall_s += wall_s
        self._cpu_s += cpu_s
        most_s = BATCHES * self.most_s
        if self._count < BATCHES and self._wall_s <= most_s:
            return None
        # On a busy machine they may take many times as long.
        spent_s = max(self._cpu_s, self._wall_s - (self.lacked() - self._lacked_s))
        if spent_s > most_s:
            reason = f"{self.otherwise.reason}; a batch takes {1e3 * spent_s / self._count:.3g} ms by now"
            return replace(self.otherwise, reason=reason)
        if self._count == BATCHES:
            self._count, self.most_s = None, max(self.most_s, DEAR_S)
        return None
