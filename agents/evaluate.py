"""Agents on simulated jobs: all on the same jobs, with the same chance, measurements, budget and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.agents.base import Agent, ask
from intune.agents.oracle import Oracle
from intune.agents.oracle_plan import Plan, plan
from intune.agents.outcomes import Trace
from intune.envs.conditions import Tape, record
from intune.envs.job_sources import Jobbing
from intune.envs.jobs import Jobs
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError

CHUNK = 512
"""Jobs side by side: enough that NumPy's calls do not count, few enough for caches."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How agents are tried.

    Attributes:
        jobs: N; numbers `first` to ``first + jobs - 1`` of the source.
        steps: decisions of an episode; before the first, one interval is run with one slot a stage.
        first: number of the first job.
        restart_seconds: that a job stands still which ran out of memory.
        chunk: jobs side by side.

    Raises:
        ConfigError: a number out of range.
    """

    jobs: int = 512
    steps: int = 96
    first: int = 0
    restart_seconds: float = 60.0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        for name, least in (("jobs", 1), ("steps", 1), ("first", 0), ("chunk", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"`{name}`={value!r} must be a whole number of {least} or more")
        if not 0 <= self.restart_seconds < float("inf"):
            raise ConfigError(f"`restart_seconds`={self.restart_seconds!r} must be 0 or more and finite")


Make = Callable[[], Agent]
Watch = Callable[[str, int], None]
"""Called with an agent's name and how many jobs more it has run."""


def evaluate(
    agents: dict[str, Make], source: Jobbing, trial: Trial, *, watch: Watch | None = None
) -> dict[str, Trace]:
    """Run agents on the jobs of a source.

    Args:
        agents: what makes each of them, by the name to report it under. One agent is made for each and started
            anew for every chunk of jobs.
        source: of jobs; a `JobSource` of the test split, if the figures are to count.
        trial: how.
        watch: is told of the progress.

    Returns:
        What each did.
    """
    made = {name: make() for name, make in agents.items()}
    parts: dict[str, list[Trace]] = {name: [] for name in agents}
    for jobs, tape, best in _chunks(source, trial):
        for name, agent in made.items():
            parts[name].append(play(agent, jobs, tape, best, trial.restart_seconds))
            if watch is not None:
                watch(name, len(jobs))
    return {name: Trace.joined(traces) for name, traces in parts.items()}


def play(agent: Agent, jobs: Jobs, tape: Tape, best: Plan, restart_seconds: float = 60.0) -> Trace:
    """One agent on N jobs side by side, over all intervals of the tape but the first.

    Args:
        agent: decides; is started anew. An `Oracle`, also one under a guard, gets to know `best`.
        jobs: N jobs.
        tape: T + 1 intervals.
        best: of the same jobs and intervals.
        restart_seconds: see `Trial`.
    """
    simulator = Simulator(jobs, tape, restart_seconds=restart_seconds)
    reveal(agent, best)
    agent.start(len(jobs), jobs.stages)
    measured = simulator.run()
    steps = tape.steps - 1
    rows: dict[str, list[Any]] = {name: [] for name in ("rate", "memory", "slots", "killed")}
    for _ in range(steps):
        proposal = ask(agent, measured)
        simulator.allocate(proposal.slots, proposal.pool)
        # Read before the interval: a job that is killed in it stands at one slot a stage afterwards.
        used = np.where(simulator.pool > 0, simulator.pool, (simulator.slots * jobs.present).sum(axis=1))
        measured = simulator.run()
        step = len(rows["rate"]) + 1
        rows["rate"].append(best.share(measured.delivered, step))
        rows["memory"].append(_fullest(simulator))
        rows["slots"].append(used / best.cpus[:, step])
        rows["killed"].append(measured.killed)
    possible = best.rate[:, 1:]
    cpus, memory = best.cpus, best.memory
    changed = (cpus[:, 1:] != cpus[:, :-1]) | (memory[:, 1:] != memory[:, :-1])
    return Trace(
        rate=np.stack(rows["rate"], axis=1).astype(np.float32),
        weight=(possible / np.maximum(possible.mean(axis=1, keepdims=True), 1e-30)).astype(np.float32),
        memory=np.stack(rows["memory"], axis=1).astype(np.float32),
        limit=(memory[:, 1:] / memory[:, :1]).astype(np.float32),
        slots=np.stack(rows["slots"], axis=1).astype(np.float32),
        killed=np.stack(rows["killed"], axis=1),
        resized=changed,
        feasible=np.asarray(best.feasible.all(axis=1)),
    )


def reveal(agent: Any, best: Plan) -> None:
    """Tell an oracle, also one inside a guard, what is best; other agents are told nothing."""
    while isinstance(agent, Agent):
        if isinstance(agent, Oracle):
            agent.use(best)
        agent = getattr(agent, "agent", None)


def _fullest(simulator: Simulator) -> Any:
    """``[N]`` bytes in use / limit, of the node where that is most."""
    flow = simulator.flow
    assert flow is not None
    return (flow.memory / np.maximum(flow.memory_limit, 1.0)).max(axis=1)


def _chunks(source: Jobbing, trial: Trial) -> Iterator[tuple[Jobs, Tape, Plan]]:
    for start in range(0, trial.jobs, trial.chunk):
        ids: Sequence[int] | Any = np.arange(start, min(start + trial.chunk, trial.jobs)) + trial.first
        jobs, normals = source.take(ids, trial.steps + 1)
        yield jobs, record(jobs, normals), plan(jobs, trial.steps + 1)
