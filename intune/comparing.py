"""Agents one after another on a real pipeline: what `intune compare` measures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intune.agents.registry import check_real, summary
from intune.control import Pace
from intune.pipelines.errors import ConfigError
from intune.profiling import ProfileConfig, make_pipeline
from intune.tuning import Tuned, tune

SAMPLES = 60
"""Readings of a run, for its curve: enough to see a climb, and each takes less than a millisecond."""

SETTLED = 1 / 3
"""Part of a run, at its end, whose rate is given as the one that an agent came to."""

WARM_SECONDS = 3.0
"""Of reading beforehand, so that the first agent is not the one that opens the files and fills the page cache."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One agent's run.

    Attributes:
        agent: its name.
        rows: delivered in all, in `seconds`.
        settled: rows/s in the last third.
        waiting: share of the trainer's time without data.
        memory: the most resident bytes.
        slots: in force at the end.
        changes: times that they were changed.
        failure: what ended tuning early; empty if nothing did.
        times, rates: seconds since the beginning, and rows/s up to them since the time before.
    """

    agent: str
    rows: int
    seconds: float
    settled: float
    waiting: float
    memory: int
    slots: dict[str, int]
    changes: int
    failure: str
    times: tuple[float, ...]
    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Rows/s over the whole run, beginning included."""
        return self.rows / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rate": self.rate}


def compare(
    config: ProfileConfig,
    agents: Sequence[str],
    *,
    told: Callable[[str, int, float], None] = lambda agent, rows, share: None,
    log: Path | None = None,
) -> Iterator[Outcome]:
    """Run the pipeline for `config.seconds` under each of the agents, from a cold start each; what came of one is there
    before the next begins.

    Args:
        config: the pipeline and its trainer.
        agents: names, none twice.
        told: is called with the agent, its rows and the share of the whole work that is done.
        log: folder for decision logs, one in each agent's own folder.

    Raises:
        ConfigError: an agent that there is not, or one that no real job can have.
        IntuneError: data that cannot be read.
    """
    if not agents or len(set(agents)) < len(agents):
        raise ConfigError(f"`agents`={tuple(agents)!r} must be names, one at least and none twice")
    for name in agents:
        summary(name)
        check_real(name, "agents")
    pipeline = make_pipeline(config)
    _warm(pipeline, config)
    for number, name in enumerate(agents):

        def watch(rows: int, share: float, name: str = name, number: int = number) -> None:
            told(name, rows, (number + share) / len(agents))

        tuned = tune(
            pipeline,
            agent=name,
            cpus=config.cpus,
            memory=config.memory,
            executor=config.executor,
            pace=_pace(config.seconds),
            knowledge=False,
            log=None if log is None else log / name,
        )
        with tuned:
            found = _run(tuned, name, config, watch)
        yield found


def _run(tuned: Tuned, name: str, config: ProfileConfig, watch: Callable[[int, float], None]) -> Outcome:
    began = time.monotonic()
    step = config.step_ms / 1000.0
    times, rows, memory = [0.0], [0], 0
    every = config.seconds / SAMPLES

    def look(seconds: float) -> None:
        nonlocal memory
        stats = tuned.stats(resident=True)
        memory = max(memory, stats.memory_resident)
        times.append(seconds)
        rows.append(stats.rows)
        watch(stats.rows, min(seconds / config.seconds, 1.0))

    over = False
    while not over:
        for _ in tuned:
            if step:
                time.sleep(step)  # the trainer
            seconds = time.monotonic() - began
            over = seconds >= config.seconds
            if over or seconds - times[-1] >= every:
                look(seconds)
            if over:
                break
        if not over and tuned.stats().rows == 0:
            raise ConfigError("`data` has fewer rows than a batch; there is nothing to compare with")
    stats = tuned.stats()
    failure = "" if tuned.failure is None else f"{type(tuned.failure).__name__}: {tuned.failure}"
    return Outcome(
        agent=name,
        rows=rows[-1],
        seconds=times[-1],
        settled=_settled(times, rows),
        waiting=stats.wait_share,
        memory=memory,
        slots=stats.allocation.as_dict(),
        changes=0 if tuned.controller is None else tuned.controller.changes,
        failure=failure,
        times=tuple(times[1:]),
        rates=tuple(
            (rows[i] - rows[i - 1]) / max(times[i] - times[i - 1], 1e-9) for i in range(1, len(times))
        ),
    )


def _settled(times: Sequence[float], rows: Sequence[int]) -> float:
    """Rows/s from the sample at which the last third begins until the end."""
    start = next(i for i, seconds in enumerate(times) if seconds >= times[-1] * (1 - SETTLED))
    start = min(start, len(times) - 2)
    return (rows[-1] - rows[start]) / max(times[-1] - times[start], 1e-9)


def _pace(seconds: float) -> Pace:
    """Decisions as often as in a job, but some thirty even in a short comparison."""
    shortest = min(1.0, seconds / 30)
    return Pace(shortest=shortest, longest=min(10.0, 10 * shortest))


def _warm(pipeline: Any, config: ProfileConfig) -> None:
    until = time.monotonic() + min(WARM_SECONDS, config.seconds)
    with tune(
        pipeline,
        agent=None,
        cpus=config.cpus,
        memory=config.memory,
        executor=config.executor,
        knowledge=False,
    ) as plain:
        for _ in plain:
            if time.monotonic() >= until:
                break


def ratio(outcome: Outcome, outcomes: Sequence[Outcome], reference: str) -> float:
    """Rate of the whole run as a multiple of the reference's; NaN where that was not run."""
    for one in outcomes:
        if one.agent == reference and one.rate > 0:
            return outcome.rate / one.rate
    return math.nan
