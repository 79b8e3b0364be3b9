"""How long to wait before storage that failed is asked again."""

from __future__ import annotations

FIRST_DELAY = 0.1
"""Seconds before the first retry; doubled each time, since storage that is overloaded or restarting needs time
more than it needs requests."""

LONGEST_DELAY = 5.0


def retry_delay(attempt: int) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) has failed."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1))
