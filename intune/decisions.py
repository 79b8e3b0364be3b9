"""The decision log: one JSON object a line for every interval, with what was measured, what was decided and why.

Bounded: a log that would grow past its limit keeps its beginning and goes on in a second file that starts over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intune.envs.measurement import Measurement
from intune.pipelines.allocation import Allocation
from intune.report import LOG

logger = logging.getLogger("intune")

MOST_BYTES = 32 << 20
"""Of a log: some 30,000 decisions, days of a job, and small enough to open in an editor."""

BESIDE = "beside"
"""Of a log's header: the folder that it made for itself beside another log."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One interval and the decision after it.

    Attributes:
        time: seconds since tuning began.
        stages: names.
        measured: what was measured.
        allocation: that was in force.
        decided: that is in force from now on; None: the same.
        reason: why, in words.
    """

    time: float
    stages: tuple[str, ...]
    measured: Measurement
    allocation: Allocation
    decided: Allocation | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what was not measured is null."""
        measured = self.measured
        stages = [
            {
                "name": name,
                **{
                    field: _number(getattr(measured, field)[0, i])
                    for field in (
                        "slots",
                        "rate",
                        "busy",
                        "cpu",
                        "starved",
                        "blocked",
                        "queued_bytes",
                        "queue_fill",
                    )
                },
            }
            for i, name in enumerate(self.stages)
        ]
        job = {
            field: _number(getattr(measured, field)[0])
            for field in (
                "delivered", "step", "waiting", "cpus", "cpus_used", "memory_used", "memory_base",
                "memory_queued", "memory_limit", "slot_limit", "clock", "bandwidth", "interval",
            )
        }  # fmt: skip
        return {
            "time": round(self.time, 3),
            **job,
            "stages": stages,
            "allocation": self.allocation.as_dict(),
            "decided": None if self.decided is None else self.decided.as_dict(),
            "reason": self.reason,
        }


class DecisionLog:
    """Writes entries to a file that no other log writes to meanwhile.

    Args:
        path: of the log; ``PATH.1`` follows when it is full. Where another log is being written there (of a second
            loader, another rank), this one goes to ``loader-2``, ``loader-3``, … beside it; where none is being
            written, those of an earlier run are removed.
        most_bytes: of each of the two.
        header: written first: what is tuned, where and how.
    """

    def __init__(self, path: Path, *, header: dict[str, Any], most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most = most_bytes
        self._broken = False
        self._file: Any = None
        self._claim: Any = None
        self._header = header
        try:
            self._path, self._claim = _claimed(path)
        except OSError as error:
            self._fail(error)
            return
        if self._path != path:
            self._header = {**header, BESIDE: self._path.parent.name}
        with contextlib.suppress(OSError):  # of an earlier run
            self._second.unlink(missing_ok=True)
        self._open(self._path)

    @property
    def _second(self) -> Path:
        return self._path.with_name(self._path.name + ".1")

    def add(self, entry: Entry) -> None:
        """Write one entry; an error is logged once, and the job goes on without a log."""
        self._write(entry.as_dict())
        if self._full():
            self._close()
            self._open(self._second)

    def close(self) -> None:
        """Close the file; twice does no harm."""
        self._close()
        claim, self._claim = self._claim, None
        if claim is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(claim, fcntl.LOCK_UN)  # a fork may have the file open for longer
            claim.close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._fail(error)

    def _open(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            self._fail(error)
            return
        self._write({"intune": 1, **self._header})

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:  # ValueError: a reason that is no text
            self._fail(error)

    def _full(self) -> bool:
        try:
            return self._file is not None and self._file.tell() >= self._most
        except (OSError, ValueError) as error:
            self._fail(error)
            return False

    def _fail(self, error: Exception) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it writes once more what the disk did not take
                file.close()
        if not self._broken:
            self._broken = True
            logger.warning("decisions are not logged from now on (%s): %s", self._path, error)


def _claimed(path: Path) -> tuple[Path, Any]:
    """A place that no other log has, and its file, locked for as long as it is open."""
    number, free = 1, path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        while (file := _locked(free)) is None:
            number += 1
            free = path.parent / f"loader-{number}" / path.name
        if number == 1:
            _clear_away([place for place in path.parent.glob(f"loader-*/{path.name}") if _beside(place)])
    if number > 1:
        logger.warning("another loader or rank logs to %s; this one logs to %s", path.parent, free.parent)
    return free, file


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While nobody else looks for a place there: what is cleared away must not be taken meanwhile."""
    claim = None
    with contextlib.suppress(OSError):  # one that cannot be opened, or a file system without locks
        claim = os.open(folder, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if claim is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(claim, fcntl.LOCK_UN)
            os.close(claim)


def clear_run(folder: Path) -> None:
    """Remove what the loaders of an earlier ``intune run`` logged in `folder`, unless one still does."""
    with _alone(folder):
        _clear_away([place for place in folder.glob(f"*loader-*/{LOG}") if "intune" in _header(place)])


def _clear_away(left: list[Path]) -> None:
    """Remove these logs of an earlier run, unless one of them is being written still."""
    with contextlib.ExitStack() as stack:
        for place in left:
            try:
                file = _locked(place)
            except OSError:
                return
            if file is None:
                return
            stack.enter_context(file)
        for place in left:
            with contextlib.suppress(OSError):
                place.unlink()
                place.with_name(place.name + ".1").unlink(missing_ok=True)
                place.parent.rmdir()  # unless there is something else in it


def _beside(path: Path) -> bool:
    """Whether a log of ours made this place for itself, as a folder that a user gave is not."""
    header = _header(path)
    return "intune" in header and header.get(BESIDE) == path.parent.name


def _header(path: Path) -> dict[str, Any]:
    """What a log begins with; empty where it is none."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline(MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _locked(path: Path) -> Any:
    """The file, opened; None where another log has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file


def _number(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
