"""`First`: what a choice that is made once remembers: the CPUs there were, and the slots then chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement


class First:
    """CPUs of each job when its choice was made; a job that was killed starts, and chooses, anew.

    Args:
        follow: choose again when the CPUs change.
    """

    def __init__(self, *, follow: bool = False) -> None:
        self._follow = follow
        self._cpus: Floats = np.zeros(0)
        self._slots: Floats = np.zeros((0, 0))

    def start(self, jobs: int) -> None:
        """Nothing is chosen for any job."""
        self._cpus = np.full(jobs, np.nan)
        self._slots = np.zeros((jobs, 0))

    def forget(self, rows: Any) -> None:
        """Nothing is chosen for the jobs at `rows`."""
        self._cpus[rows] = np.nan

    def due(self, measured: Measurement, ready: Bools) -> Bools:
        """``[N]`` for which jobs a choice is to be made now; their CPUs are remembered.

        Args:
            measured: the interval.
            ready: ``[N]`` whether enough is known to choose.
        """
        self._cpus[measured.killed] = np.nan
        never = np.isnan(self._cpus)
        changed = (measured.cpus != self._cpus) if self._follow else np.zeros(len(measured), dtype=bool)
        due: Bools = ready & (never | changed)
        self._cpus[due] = measured.cpus[due]
        return due

    def cpus(self, measured: Measurement) -> Floats:
        """``[N]`` CPUs to go by: those of the choice, made now where it was not yet."""
        self.due(measured, measured.sound())
        return self._cpus.copy()

    def remembered(self, due: Bools, slots: Floats) -> Floats:
        """``[N, S]`` the slots chosen, now where `due` and earlier elsewhere."""
        if self._slots.shape != slots.shape:
            self._slots = np.ones_like(slots)
        self._slots = np.where(due[:, None], slots, self._slots)
        return self._slots.copy()
