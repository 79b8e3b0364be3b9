"""What a job learnt, kept for its next run: the allocation that delivered most, and what its agent believes. A JSON
file per pipeline and machine.

Nothing is executed on reading; a file that cannot be read or does not fit is passed over with one line in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError

logger = logging.getLogger("intune")

VERSION = 3

MOST_BYTES = 1 << 20
"""Of a file: some fifty times what a pipeline of five stages takes; a larger one is none of ours."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What was learnt.

    Attributes:
        allocation: that delivered most.
        rate: rows/s that it delivered.
        memory: resident bytes at most.
        learnt: what the agent believes, as `Agent.knowledge` gives it.
    """

    allocation: Allocation
    rate: float
    memory: float
    learnt: Mapping[str, Any] = field(default_factory=dict)


def default_folder() -> Path | None:
    """``$INTUNE_CACHE``, else ``$XDG_CACHE_HOME/intune``, else ``~/.cache/intune``; None where there is no home, as
    in a container that runs as a user it does not know."""
    if own := os.environ.get("INTUNE_CACHE"):
        # An image's or a job's variables went through no shell; and a script may change its folder before it ends.
        return Path(os.path.abspath(os.path.expanduser(own)))
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "intune"
    try:
        return Path.home() / ".cache" / "intune"
    except RuntimeError as error:
        _say_homeless(str(error))
        return None


@cache
def _say_homeless(reason: str) -> None:
    logger.warning(
        "there is no folder to keep what is learnt in (%s); going without: set INTUNE_CACHE to one", reason
    )


def key_of(pipeline: str, stages: Sequence[str], cpus: int, memory: int) -> str:
    """Name of a job on a machine: what it runs, and the machine's size (memory to the next power of two)."""
    text = json.dumps([VERSION, pipeline, list(stages), cpus, memory.bit_length()])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def recall(folder: Path, key: str, stages: Sequence[str]) -> Knowledge | None:
    """What is known of a job; None if nothing is."""
    path = folder / f"{key}.json"
    try:
        stored: Any = _read(path)
        if stored["version"] != VERSION or stored["key"] != key:
            logger.info("what is kept in %s is of another version or job; starting without it", path)
            return None
        slots = stored["slots"]
        if stored["pool"]:
            allocation = Allocation.shared(stored["pool"])
        elif isinstance(slots, dict) and set(slots) == set(stages):
            allocation = Allocation.per_stage(slots)
        else:
            return None
        rate, memory = float(stored["rate"]), float(stored["memory"])
        if not (0 <= rate < math.inf and 0 <= memory < math.inf):
            raise ValueError(f"rate {rate} and memory {memory} must be 0 or more and finite")
        learnt = stored["learnt"]
        if not isinstance(learnt, dict):
            raise ValueError(f"what was learnt is {type(learnt).__name__}, not a mapping")
        return Knowledge(allocation=allocation, rate=rate, memory=memory, learnt=learnt)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        logger.warning("what an earlier run learnt cannot be read (%s: %s); starting without it", path, error)
        return None


def keep(folder: Path, key: str, known: Knowledge) -> bool:
    """Write what was learnt, whole or not at all; whether all of it is written. A full disk or a read-only home is
    worth a line in the log."""
    stored = {
        "version": VERSION,
        "key": key,
        "pool": known.allocation.pool if known.allocation.is_shared else 0,
        "slots": dict(known.allocation.slots),
        "rate": known.rate,
        "memory": known.memory,
    }
    try:
        text, whole = _text(stored, known.learnt)
        folder.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files are for their user alone: a team may share a folder, or pods of a user each.
        written = folder / f"{key}-{secrets.token_hex(8)}.tmp"
        try:
            with written.open("x", encoding="utf-8") as file:
                file.write(text)
            os.replace(written, folder / f"{key}.json")
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    except (OSError, ValueError, TypeError) as error:
        logger.warning("what this run learnt cannot be kept in %s: %s", folder, error)
        return False
    return whole


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return json.loads(text.decode("utf-8"))


def _text(stored: Mapping[str, Any], learnt: Mapping[str, Any]) -> tuple[str, bool]:
    """As JSON, and whether what was learnt is in it, which it is not where that is too large or no JSON: an infinite
    number, for one."""
    try:
        text = json.dumps({**stored, "learnt": dict(learnt)}, allow_nan=False)
        if len(text) <= MOST_BYTES:
            return text, True
        problem = f"it has more than {MOST_BYTES} bytes"
    except (ValueError, TypeError, RecursionError) as error:
        problem = str(error)
    text = json.dumps({**stored, "learnt": {}}, allow_nan=False)
    logger.warning(
        "what the agent's `knowledge()` gave cannot be kept (%s); return plain JSON. The allocation is kept",
        problem,
    )
    return text, False
