"""What a run of `tune` begins with and keeps for the next one: by what name a pipeline is known again, and when what
was learnt of it is written. How it is stored lives in `intune.knowledge`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intune.agents.base import Agent
from intune.control import Controller
from intune.decisions import Entry
from intune.knowledge import Knowledge, keep
from intune.pipelines.pipeline import Pipeline

logger = logging.getLogger("intune")

KEPT_EVERY_S = 60.0
"""Seconds between two times that what is learnt is kept: a killed job loses no more, and it takes some milliseconds."""


def name_of(source: Any) -> str:
    """What a pipeline is, for finding what an earlier run of it learnt."""
    pipeline = getattr(source, "pipeline", source)  # a loader is known by what it runs
    if isinstance(pipeline, Pipeline):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(pipeline))  # where functions lie says nothing
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    about = (
        _name_of_dataset(getattr(source, "dataset", source)),
        getattr(source, "batch_size", None),
        getattr(source, "num_workers", None),
        getattr(getattr(source, "collate_fn", None), "__qualname__", None),
        script and os.path.abspath(script),
    )
    return f"{type(source).__qualname__}({', '.join(map(str, about))})"


def _name_of_dataset(dataset: Any) -> str:
    """Its class and its length, and what it is a part of: a training's data must not pass for its validation's."""
    kind = type(dataset)
    length: Any = None
    with contextlib.suppress(Exception):  # whatever the user's own may raise; many have none
        length = len(dataset)
    inner = getattr(dataset, "dataset", None)
    of = "" if inner is None or inner is dataset else f" of {_name_of_dataset(inner)}"
    return f"{kind.__module__}.{kind.__qualname__}[{length}]{of}"


def now_and_then(keeps: Callable[[], bool]) -> Callable[[Entry], None]:
    """Told of decisions, it calls `keeps` every `KEPT_EVERY_S` for as long as that goes well: many a job is killed
    and starts again without having been asked."""
    due = KEPT_EVERY_S

    def listener(entry: Entry) -> None:
        nonlocal due
        if entry.time >= due:
            due = entry.time + KEPT_EVERY_S if keeps() else math.inf

    return listener


def remember(controller: Controller, folder: Path, key: str) -> bool:
    """Keep what was learnt, if anything was; whether all of it was kept."""
    if controller.best is None:
        return True
    allocation, rate, memory = controller.best
    learnt: Mapping[str, Any] = {}
    whole = True
    try:
        learnt = controller.agent.knowledge()
    except Exception as error:  # whatever an agent does, the allocation is kept
        logger.warning("what the agent learnt is not kept (%s: %s)", type(error).__name__, error)
        whole = False
    best = replace(allocation, memory=None)
    return keep(folder, key, Knowledge(allocation=best, rate=rate, memory=memory, learnt=learnt)) and whole


def teach(agent: Agent, known: Knowledge) -> None:
    """Let the agent begin with what it believed at the end of an earlier run."""
    try:
        agent.recall(known.learnt)
    except Exception as error:
        logger.warning(
            "what the agent learnt in an earlier run cannot be used (%s: %s); it starts without it",
            type(error).__name__,
            error,
        )
