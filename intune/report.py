"""A run's decision log, read back: what was measured, what held the job up when, and what tuning brought.

Draws nothing: `report_page` makes a page of it and `report_pictures` pictures. Reading never fails on a line that a
killed job left half written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intune.pipelines.errors import ConfigError

LOG = "decisions.jsonl"

HEADER = {"agent": str, "pipeline": str, "stages": list, "cpus": int, "memory": int, "began": int | float}
"""What a log begins with, beside its version."""

TRAINER = "trainer"

PAUSE = 3.0
"""Seconds before an interval in which nothing was measured, from which on there was a pause (a validation, the time
before the first batch): what was under way when slots changed takes less to settle."""

MOST_NAMED = 20
"""Stages, or folders, that are named in one place: more say nothing to a reader."""

SATED = 0.05
"""Share of its time that a trainer waits at most if it is what holds the job up."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One line of the log.

    Attributes:
        began: seconds since tuning began, when the interval before it ended; time: when it ended itself.
        seconds: that were measured.
        delivered: rows/s; waiting: the trainer's share of time without data. NaN where not measured.
        memory, memory_limit: bytes resident and allowed.
        busy: slots at work by stage.
        slots: in force by stage; of a shared pool, ``{"shared": n}``.
        decided: slots from then on; None where nothing changed.
        reason: in words.
    """

    began: float
    time: float
    seconds: float
    delivered: float
    waiting: float
    memory: float
    memory_limit: float
    busy: dict[str, float]
    slots: dict[str, int]
    decided: dict[str, int] | None
    reason: str

    @property
    def opened(self) -> float:
        """Seconds since tuning began from which on it was measured: a pause before it is no part of it."""
        opened = self.time - self.seconds
        return opened if opened - self.began > PAUSE else self.began

    @property
    def bottleneck(self) -> str:
        """What held the job up: the trainer, if it hardly waited, else the stage most of whose slots were at work.

        Slots are what a stage has of its own; of a shared pool, the stage that kept most of it busy.
        """
        if self.waiting < SATED:
            return TRAINER
        shares = {name: busy / max(self.slots.get(name, 1), 1) for name, busy in self.busy.items()}
        return max(shares, key=shares.__getitem__) if shares else TRAINER


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a log holds.

    Attributes:
        agent, pipeline: that were tuned by and tuned.
        stages: their names.
        cpus, memory: of the budget.
        began: seconds since 1970.
        intervals: in order; never empty.
        unreadable: lines passed over.
    """

    agent: str
    pipeline: str
    stages: tuple[str, ...]
    cpus: int
    memory: int
    began: float
    intervals: tuple[Interval, ...]
    unreadable: int

    @property
    def measured(self) -> list[Interval]:
        """Intervals of which it is known what was delivered, be it nothing."""
        return [one for one in self.intervals if one.seconds > 0 and one.delivered >= 0]

    @property
    def bottlenecks(self) -> list[tuple[Interval, str]]:
        """Measured intervals, each with what held the job up then. Of one in which nothing was delivered (a batch takes
        longer, storage stalls) the next delivery tells, whose step and wait it was; without one nobody knows."""
        found: list[tuple[Interval, str]] = []
        name = ""
        for one in reversed(self.measured):
            name = one.bottleneck if one.delivered > 0 else name
            if name:
                found.append((one, name))
        return found[::-1]

    @property
    def changes(self) -> list[Interval]:
        """Intervals after which slots changed."""
        return [one for one in self.intervals if one.decided is not None]

    @property
    def rows(self) -> float:
        """Rows delivered while it was measured."""
        return sum(one.delivered * one.seconds for one in self.measured)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What tuning brought against the slots that the run began with, in intervals in which rows were delivered: a
    pause of the trainer is no loss.

    Attributes:
        first: rows/s with those slots, whenever they were in force; last: in the last quarter of the time.
        seconds: that were measured, seconds_first of them with those slots.
        saved: seconds that the same rows would have taken longer at the first rate (negative: less).
        slots_first, slots_last: that were given out, on average.
        memory_first, memory_last: resident bytes, on average.
    """

    first: float
    last: float
    seconds: float
    seconds_first: float
    saved: float
    slots_first: float
    slots_last: float
    memory_first: float
    memory_last: float


def gain(run: Run) -> Gain | None:
    """None where too little was measured to compare: fewer than four intervals, or none with other slots."""
    measured = [one for one in run.measured if one.delivered > 0]
    first = [one for one in measured if one.slots == measured[0].slots]
    if len(measured) < 4 or len(first) == len(measured):
        return None
    seconds = sum(one.seconds for one in measured)
    last = _last(measured, seconds / 4)
    rate = _mean(first, "delivered")
    return Gain(
        first=rate,
        last=_mean(last, "delivered"),
        seconds=seconds,
        seconds_first=sum(one.seconds for one in first),
        saved=run.rows / rate - seconds,
        slots_first=_mean(first, "total"),
        slots_last=_mean(last, "total"),
        memory_first=_mean(first, "memory"),
        memory_last=_mean(last, "memory"),
    )


def _last(intervals: list[Interval], seconds: float) -> list[Interval]:
    """Those at the end that have so many seconds together."""
    at = len(intervals)
    while seconds > 0 and at > 0:
        at -= 1
        seconds -= intervals[at].seconds
    return intervals[at:]


def held_up(run: Run) -> dict[str, float]:
    """Share of the measured time for which each of them held the job up, the largest first."""
    seconds: dict[str, float] = {}
    for one, name in run.bottlenecks:
        seconds[name] = seconds.get(name, 0.0) + one.seconds
    whole = sum(seconds.values())
    return {name: part / whole for name, part in sorted(seconds.items(), key=lambda pair: -pair[1])}


def read_run(folder: Path) -> Run:
    """The run whose log is in `folder`, or at that path; see `log_in`.

    Raises:
        ConfigError: there is none, it has no interval, its header lacks something, or a stage is not in the header.
    """
    path = log_in(folder)
    lines, broken = _lines(path)
    more = path.with_name(path.name + ".1")
    if more.is_file():
        rest, also = _lines(more)
        lines, broken = [*lines, *rest[1:]], broken + also
    if not lines or lines[0][1].get("intune") != 1:
        raise ConfigError(f"{path} is not a decision log of this version; give one that intune.tune wrote")
    header = _header(*lines[0])
    intervals: list[Interval] = []
    for where, line in lines[1:]:
        try:
            found = _interval(line, intervals[-1].time if intervals else 0.0)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            broken += 1
            continue
        strange = [name for name in found.busy if name not in header["stages"]]
        if strange:
            raise ConfigError(
                f"{where}: stage {strange[0]!r} is none of the header's, {', '.join(header['stages'])}; lines of two "
                "runs are mixed here: give a log as intune.tune wrote it"
            )
        intervals.append(found)
    if not intervals:
        raise ConfigError(f"{path} has no decision yet; wait until the job has run for some seconds")
    return Run(**header, intervals=tuple(intervals), unreadable=broken)


def log_in(folder: Path) -> Path:
    """The log in `folder` or, where that has none, in the only folder in it that has one; or at that path.

    Raises:
        ConfigError: there is none, or several folders have one.
    """
    path = folder / LOG if folder.is_dir() else folder
    if path.is_file():
        return path
    within = sorted(folder.glob(f"*/{LOG}"))
    if len(within) == 1:
        return within[0]
    folders = named(str(log.parent) for log in within)
    where = f"one of {folders}" if within else "the folder that was given to intune.tune(log=…)"
    raise ConfigError(f"`run`={str(folder)!r} has no {LOG}; give {where}")


def _header(where: str, line: dict[str, Any]) -> dict[str, Any]:
    """What a run has of its log's first line."""
    for name, type_ in HEADER.items():
        if not isinstance(line.get(name), type_):
            what = f"is {json.dumps(line[name])[:80]}" if name in line else "is missing"
            raise ConfigError(f"{where}: the header's {name!r} {what}; give a log as intune.tune wrote it")
    found = {name: line[name] for name in HEADER}
    return {**found, "stages": tuple(str(name) for name in line["stages"])}


def logs_beside(folder: Path) -> list[Path]:
    """Folders of other loaders and ranks that logged to `folder` meanwhile, in order."""
    found = [log.parent for log in folder.glob(f"loader-*/{LOG}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def counted(number: int, what: str) -> str:
    """So many of them, in words: ``1 change``, ``2 changes``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def named(names: Iterable[str]) -> str:
    """The first of them in words, and how many more there are."""
    known = list(names)
    more = [f"and {len(known) - MOST_NAMED} more"] if len(known) > MOST_NAMED else []
    return ", ".join([*known[:MOST_NAMED], *more])


def _lines(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """What can be read, each with its place, and how many lines cannot."""
    found: list[tuple[str, dict[str, Any]]] = []
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                value = json.loads(text)
            except ValueError:
                broken += 1
                continue
            if isinstance(value, dict):
                found.append((f"{path}, line {number}", value))
            else:
                broken += 1
    return found, broken


def _interval(line: dict[str, Any], before: float) -> Interval:
    decided = line["decided"]
    time = float(line["time"])
    if not math.isfinite(time):
        raise ValueError("no time")
    return Interval(
        began=min(before, time),
        time=time,
        seconds=_number(line.get("interval"), 0.0),
        delivered=_number(line.get("delivered")),
        waiting=_number(line.get("waiting")),
        memory=_number(line.get("memory_used")),
        memory_limit=_number(line.get("memory_limit")),
        busy={str(stage["name"]): _number(stage.get("busy"), 0.0) for stage in line["stages"]},
        slots={str(name): int(count) for name, count in line["allocation"].items()},
        decided=None if decided is None else {str(name): int(count) for name, count in decided.items()},
        reason=str(line["reason"]),
    )


def _number(value: Any, unknown: float = math.nan) -> float:
    return unknown if value is None else float(value)


def _mean(intervals: list[Interval], what: str) -> float:
    """Weighted by time; NaN where nothing was measured."""
    total = seconds = 0.0
    for one in intervals:
        value = float(sum(one.slots.values())) if what == "total" else float(getattr(one, what))
        if math.isfinite(value):
            total += value * one.seconds
            seconds += one.seconds
    return total / seconds if seconds > 0 else math.nan
