"""A small simulated job of three stages, and a clock moved by hand, for tests of what runs one."""

from __future__ import annotations

from typing import Any

from intune.envs.jobs import Jobs


class Clock:
    """Stands still until it is told to go on; calling `wait` does that."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def a_job(**changes: Any) -> Jobs:
    """One of three stages on 8 CPUs; the first waits most of its time."""
    values: dict[str, Any] = {
        "cpu": [[2e-6, 1e-6, 4e-6]],
        "wait": [[3e-6, 0.0, 0.0]],
        "slot_bytes": 5e7,
        "base_bytes": 1e9,
        "memory": 8e9,
        "step": 5e-7,
        "cpus": 8.0,
    }
    return Jobs.of(stages=3, **{**values, **changes})
