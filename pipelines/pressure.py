"""`Pressure`: whether the memory left to this job is nearly gone, whoever took it. Looked at before tasks are begun.

The budget counts blocks; a user's function, the trainer or another program may take what no budget counts, and a
limit may be lowered while the job runs. The tuner gives slots back at its next decision, seconds later: until then
this keeps the pipeline from taking the last of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from intune.pipelines.allocators import give_back
from intune.pipelines.cgroup import MemoryGauge

logger = logging.getLogger("intune")

EVERY_S = 0.05
"""Seconds between two looks; one costs a tenth of a millisecond."""

LEAST_SHARE, MOST_SHARE = 0.03, 0.10
"""Part of the limit that is kept free: at least, and at most, where what is in use moves fast."""

MOST_BYTES = 1 << 30
"""No more than this is kept free of a large machine's memory."""

SUDDEN_S = 1.0
"""Seconds between two looks beyond which a fall says nothing of how fast memory goes."""

CALM_S = 10.0
"""Seconds after which a fall of the free memory is forgotten by half."""

PLENTY = 8 << 30
"""Bytes from which on, if they are half of the limit besides, any number of tasks may begin at once."""

STEPS = ((0.5, 1.0), (0.25, 0.5), (0.0, 0.1))
"""Else, where more than so much of the limit is left, tasks by which there may be more at once than ever before for
each that has ended. What a task takes shows only while it works, and one that has ended has shown it: so their number
doubles, grows by half, then by a tenth, while as many as there are come and go."""

FREE_EVERY_S = 0.5
"""Seconds between two times that allocators are asked to give back what they keep."""

SAID_S = 60.0
"""Seconds between two warnings."""

REMEMBERED = 1200
"""Looks, a minute of them, whose findings are kept for who asks later."""


class Pressure:
    """Says whether next to no memory is left.

    What counts as next to none follows how fast it was seen to go: the largest fall between two looks (half as
    much every `CALM_S`), within bounds. Where there is not plenty, more tasks at once than there ever were are begun
    a few at a time (`STEPS`), and of a wave that could begin together no more than find room if each takes what tasks
    were seen to take.

    Args:
        read: bytes that the job may hold, and how many of them are left; None where nobody knows.
        release: has allocators give back what they keep.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        read: Callable[[], tuple[int, int] | None] | None = None,
        *,
        release: Callable[[], None] = give_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = MemoryGauge().read if read is None else read
        self._release = release
        self._clock = clock
        self._due = -math.inf
        self._left: int | None = None
        self._looked = 0.0
        self._fall = 0.0
        self._each = 0.0  # bytes by which memory fell for each task at work
        self._kept = 0.0
        self._plenty = True
        self._begun = (0, 0)  # tasks begun by the last look but one, and by the last
        self._running = 0
        self._high = False
        self._ended = 0
        self._known = 0
        self._most = 1.0  # tasks at once
        self._said = self._freed = -math.inf
        self._seen: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def least_left(self, seconds: float) -> int | None:
        """Fewest bytes that were left in the last `seconds`, as far as was looked; None where nobody knows.

        What functions take for the time of a call comes and goes: whoever looks now and then sees its average.
        """
        since = self._clock() - seconds
        return min((left for time, left in tuple(self._seen) if time >= since), default=None)

    def __call__(self, running: int, ended: int) -> bool:
        """Whether to begin nothing that can wait.

        Args:
            running: tasks at work; ended: that have ended so far.
        """
        now = self._clock()
        if now >= self._due:
            self._due = now + EVERY_S
            self._look(now, running, ended)
        if self._high or running >= self._most:
            return True
        if self._plenty or self._left is None or not running:
            return False
        # What those take that were begun since, or just before, the last look does not show yet.
        unseen = min(running + ended - self._begun[0], running)
        return self._left - self._kept < self._each * (unseen + 1)

    def _look(self, now: float, running: int, ended: int) -> None:
        found = self._read()
        if found is None:
            self._high, self._most, self._plenty = False, math.inf, True
            return
        limit, left = found
        self._seen.append((now, left))
        self._follow(now, left, running)
        self._begun = (self._begun[1], running + ended)
        self._plenty = left >= max(PLENTY, STEPS[0][0] * limit)
        kept = min(max(LEAST_SHARE * limit, self._fall), MOST_SHARE * limit, MOST_BYTES)
        self._kept = kept
        # Not on and off with every block.
        self._high = left < (1.5 * kept if self._high else kept)
        self._allow(limit, left, kept, running, ended)
        if self._high and now - self._freed >= FREE_EVERY_S:
            self._freed = now
            self._release()
        if self._high and now - self._said >= SAID_S:
            self._said = now
            logger.warning(
                "only %s of the %s that this job may hold are left; until there is more, nothing is read ahead. Give "
                "the pipeline less memory or fewer slots if this lasts",
                _mib(left),
                _mib(limit),
            )

    def _allow(self, limit: int, left: int, kept: float, running: int, ended: int) -> None:
        """How many tasks there may be at once."""
        more, self._ended = max(ended - self._ended, 0), ended
        if self._plenty:
            self._most = math.inf
            return
        if self._high:
            # That many were too many, or what the last of them take has not shown yet.
            self._known = running // 2
            self._most = float(max(self._known, 1))
            return
        self._known = running if self._most == math.inf else max(self._known, running)
        step = next(step for least, step in STEPS if left >= least * limit) if left >= 2.0 * kept else 0.0
        top = 1.0 + (1.0 + step) * self._known
        before = top if self._most == math.inf else self._most
        self._most = max(1.0, self._known, min(before + step * more, top))

    def _follow(self, now: float, left: int, running: int) -> None:
        """How fast memory was seen to go, and how much of it for each task at work."""
        if self._left is not None:
            between = now - self._looked
            fades = 0.5 ** (between / CALM_S)
            self._fall, self._each = self._fall * fades, self._each * fades
            if between <= SUDDEN_S:
                fall = float(self._left - left)
                self._fall = max(self._fall, fall)
                if at_work := max(running, self._running):  # else it was somebody else's
                    self._each = max(self._each, fall / at_work)
        self._left, self._looked, self._running = left, now, running


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
