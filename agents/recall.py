"""What an agent learnt of its job, as plain numbers that a file can keep, and how the job's next run takes it up.

Beliefs of the twin count for fewer observations than they were made of, so that a job that changed is soon known
anew. Records of memory count only once the run has confirmed one: with the same slots it takes about the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from intune.agents.memory import MemoryRecord, in_use
from intune.agents.twin import Twin
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

COUNTS = 4.0
"""Intervals that recalled beliefs count for at most, of the twenty or so they were made of."""

AGREE = 0.15
"""Share by which memory may differ from what was recorded: twice the noise that is expected before it is seen."""

KEPT = 12
"""Allocations kept, those in force last: a settled job has few."""

LARGEST = 1e15
"""Beyond any bytes, seconds or counts of a job."""


def twin_knowledge(twin: Twin) -> dict[str, Any]:
    """The beliefs about the one job of a tuner."""
    return {name: _plain(values[0]) for name, values in twin.learnt().items()}


def recall_twin(twin: Twin, known: Any) -> None:
    """Let `twin`, of one job, begin with beliefs of an earlier run.

    Raises:
        ConfigError: they are no beliefs of such a twin.
    """
    fresh = twin.learnt()
    if not isinstance(known, Mapping) or set(known) != set(fresh):
        raise ConfigError(f"`twin` must hold {', '.join(sorted(fresh))}")
    read = {name: _array(f"twin.{name}", known[name], fresh[name].shape[1:]) for name in fresh}
    for name in ("weight", "misfit", "cpu"):
        if (read[name] < 0).any():
            raise ConfigError(f"`twin.{name}` must be 0 or more")
    part = np.minimum(1.0, COUNTS / np.maximum(read["weight"], 1e-12))
    read["weight"] = read["weight"] * part
    read["misfit"] = read["misfit"] * part[:, None]
    twin.resume({name: values[None] for name, values in read.items()})


def knowledge_of(twin: Twin, log: MemoryLog) -> dict[str, Any]:
    """What an agent with a twin keeps for the next run: its beliefs, and what was seen of memory."""
    return {"twin": twin_knowledge(twin), "memory": log.knowledge()}


def recall_into(twin: Twin, log: MemoryLog, known: Mapping[str, Any]) -> None:
    """Begin with that; memory counts once this run confirms it.

    Raises:
        ConfigError: it is none of this job's.
    """
    log.recall(known.get("memory"))
    if "twin" in known:
        recall_twin(twin, known["twin"])


class MemoryLog:
    """What the one job of a tuner took with the slots it had, for its next run; and what its last run said of that.

    Knows no more of a `MemoryRecord` than that it sees measurements: what is recalled is shown to it as such.

    Args:
        stages: of the job.
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._seen: OrderedDict[tuple[int, ...], tuple[float, float]] = (
            OrderedDict()
        )  # times, bytes above the base
        self._base = 0.0
        self._recalled: dict[tuple[int, ...], float] = {}
        self._recalled_base = 0.0

    @property
    def waiting(self) -> bool:
        """Whether something is recalled that this run has neither confirmed nor contradicted."""
        return bool(self._recalled)

    def knowledge(self) -> dict[str, Any]:
        """Slots, and the bytes above the base that they took."""
        return {
            "slots": [list(slots) for slots in self._seen],
            "added": [_plain(added) for _, added in self._seen.values()],
            "base": _plain(self._base),
        }

    def recall(self, known: Any) -> None:
        """Take up what `knowledge` gave in an earlier run; None for nothing.

        Raises:
            ConfigError: it is none of such a job.
        """
        if known is None:
            return
        try:
            count = len(known["slots"])
            slots = _array(
                "memory.slots", known["slots"] or np.zeros((0, self._stages)), (count, self._stages)
            )
            added = _array("memory.added", known["added"], (count,))
            base = float(_array("memory.base", known["base"], ()))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"`memory` is no record of memory ({error!r})") from None
        if count > KEPT or (slots < 0).any() or (added < 0).any() or base < 0:
            raise ConfigError(f"`memory` must hold at most {KEPT} entries, of numbers of 0 or more")
        keys = [tuple(row) for row in np.rint(slots).astype(int).tolist()]
        self._recalled = dict(zip(keys, added.tolist(), strict=True))
        self._recalled_base = base

    def look(self, record: MemoryRecord, measured: Measurement) -> None:
        """Note an interval, which `record` has seen. If it confirms what is recalled, `record` sees that too, each
        entry once; if it contradicts it, that is dropped."""
        if len(measured) != 1 or measured.pool[0] > 0 or measured.killed[0] or not measured.sound()[0]:
            return
        base = float(measured.memory_base[0])
        added = float(measured.memory_used[0] - measured.memory_queued[0]) - base
        if not (math.isfinite(base) and math.isfinite(added) and added > 0):
            return
        slots = tuple(np.rint(in_use(measured)[0]).astype(int).tolist())
        times, mean = self._seen.pop(slots, (0.0, 0.0))
        self._seen[slots] = (min(times + 1.0, COUNTS), mean + (added - mean) / min(times + 1.0, COUNTS))
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        self._base = base
        if self.waiting:
            self._confirm(record, measured, slots, added)

    def _confirm(
        self, record: MemoryRecord, measured: Measurement, slots: tuple[int, ...], added: float
    ) -> None:
        base = float(measured.memory_base[0])
        if abs(base - self._recalled_base) > AGREE * max(base, self._recalled_base):
            self._recalled = {}
        elif slots in self._recalled:
            recalled, self._recalled = self._recalled, {}
            then = recalled.pop(slots)
            if abs(added - then) > AGREE * max(then, added):
                return
            more = max(1.0, added / then)  # what is confirmed is confirmed at what it takes now
            for other, bytes_then in recalled.items():
                record.see(
                    replace(
                        measured,
                        slots=np.array([other], dtype=np.float64),
                        memory_used=measured.memory_base + measured.memory_queued + bytes_then * more,
                    ),
                    recalled=True,
                )


def _array(name: str, values: Any, shape: tuple[int, ...]) -> Floats:
    try:
        read: Floats = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"`{name}` must be numbers") from None
    if read.shape != shape:
        raise ConfigError(f"`{name}` has shape {read.shape}, where {shape} is expected")
    if not (np.abs(read) < LARGEST).all():
        raise ConfigError(f"`{name}` must be finite and below {LARGEST:g}")
    return read


def _plain(values: Any) -> Any:
    """Lists of floats of six digits, for JSON."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return float(f"{float(values):.6g}")
