"""Our `autotune` beside TensorFlow's: the parallelism that both settle on, for the same pipelines.

Two questions are asked of every pipeline. *Search*: given the times per element that TensorFlow measured, do our
searches choose what its did? What it chose at its last round rests on slightly older times, and its stage-based search
on a moving average over some ten elements that it does not tell; so differences remain there. *Agent*: does our agent
come to the same on a simulated job whose stages take these times, or what they nominally cost? (Sleeping takes longer
than asked for, the more so the busier the machine.)

Run with ``make peers`` done: ``python -m benchmarks.autotune_check --json figures/autotune.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness import PYTHONS, REPOSITORY
from benchmarks.report import write
from intune.agents.autotune import Algorithm, Autotune
from intune.agents.autotune_model import Tuned, hill_climb, stage_based
from intune.envs.jobs import Jobs
from intune.envs.simulator import Simulator

PLENTY = 1e9
"""Bytes of RAM budget that numbers of eight bytes never reach."""
OUTLIERS = 2.0
"""Standard deviations beyond which TensorFlow drops a gap between the trainer's requests."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pipeline.

    Attributes:
        name: for people.
        algorithm: TensorFlow's name of it.
        seconds: that each stage takes, from the source on.
        cpus: of the pretended machine: TensorFlow's threads and CPU budget.
        kind: of user code: ``sleep`` or ``work``.
        ram: budget in bytes; elements have eight.
        consumer: seconds that the trainer takes for an element.
        duration: seconds; the rounds up to then are at 2.54, 5.1 and 10.22.
    """

    name: str
    algorithm: str
    seconds: tuple[float, ...]
    cpus: int = 8
    kind: str = "sleep"
    ram: float = PLENTY
    consumer: float = 0.0
    duration: float = 6.0


THREE = (0.002, 0.006, 0.001)
CASES = (
    Case(name="default", algorithm="DEFAULT", seconds=THREE),
    Case(name="max parallelism", algorithm="MAX_PARALLELISM", seconds=THREE),
    Case(
        name="max parallelism, 5 stages",
        algorithm="MAX_PARALLELISM",
        seconds=(0.001, 0.008, 0.002, 0.004, 0.001),
    ),
    Case(name="max parallelism, little RAM", algorithm="MAX_PARALLELISM", seconds=THREE, ram=100.0),
    Case(
        name="max parallelism, RAM for few",
        algorithm="MAX_PARALLELISM",
        seconds=(0.004, 0.001, 0.002),
        ram=60.0,
    ),
    Case(name="hill climb", algorithm="HILL_CLIMB", seconds=THREE),
    Case(name="hill climb, first stage dear", algorithm="HILL_CLIMB", seconds=(0.01, 0.002, 0.001)),
    Case(name="hill climb, last stage dear", algorithm="HILL_CLIMB", seconds=(0.001, 0.002, 0.01)),
    Case(name="hill climb, alike", algorithm="HILL_CLIMB", seconds=(0.004, 0.004, 0.004)),
    Case(
        name="hill climb, 16 CPUs, 4 stages",
        algorithm="HILL_CLIMB",
        seconds=(0.004, 0.012, 0.002, 0.006),
        cpus=16,
    ),
    Case(name="hill climb, little RAM", algorithm="HILL_CLIMB", seconds=THREE, ram=60.0),
    Case(name="hill climb, at work", algorithm="HILL_CLIMB", seconds=(0.002, 0.006, 0.001), kind="work"),
    Case(name="stage based", algorithm="STAGE_BASED", seconds=THREE),
    Case(
        name="stage based, trainer of 2 ms",
        algorithm="STAGE_BASED",
        seconds=(0.003, 0.009, 0.001),
        consumer=0.002,
    ),
    Case(name="stage based, at work", algorithm="STAGE_BASED", seconds=(0.002, 0.006, 0.001), kind="work"),
)


def searched(case: Case, found: dict[str, Any]) -> list[int]:
    """What our search chooses with TensorFlow's own times."""
    times = np.array([found["self_time"]])
    tuned = Tuned(
        present=np.ones(times.shape, dtype=bool),
        self_time=times,
        element_bytes=np.array([found["element_bytes"]]),
        most=np.array([float(max(found["most"]))]),
        ram_budget=np.array([case.ram]),
        cpu_budget=np.array([float(case.cpus)]),
    )
    if case.algorithm == "STAGE_BASED":
        chosen, _ = stage_based(tuned, np.array([target(found["gaps"])]))
    else:
        chosen, _ = hill_climb(tuned, cpu_stop=case.algorithm == "HILL_CLIMB")
    return [int(count) for count in chosen[0]]


def target(gaps: Sequence[float]) -> float:
    """Seconds an element: mean of the gaps without outliers."""
    each = np.array(gaps)
    if not len(each):
        return 0.0
    return float(each[np.abs(each - each.mean()) <= OUTLIERS * each.std() + 1e-12].mean())


def decided(case: Case, seconds: Sequence[float]) -> list[int]:
    """What our agent gives a simulated job whose stages take `seconds`, after its second decision."""
    algorithm: Algorithm = "max_parallelism"
    if case.algorithm in ("HILL_CLIMB", "STAGE_BASED"):
        algorithm = "hill_climb" if case.algorithm == "HILL_CLIMB" else "stage_based"
    jobs = Jobs.of(
        stages=len(seconds), wait=np.array([seconds]), cpu=1e-9, cpus=float(case.cpus), row_bytes=8.0,
        block_rows=1.0, step=max(case.consumer, 1e-5), memory=2.0 * case.ram, slots_per_cpu=64.0,
    )  # fmt: skip
    agent = Autotune(algorithm=algorithm, element_rows=1.0)
    agent.start(1, len(seconds))
    simulator = Simulator(jobs, steps=4)
    measured = simulator.run()
    for _ in range(2):
        proposal = agent.propose(measured)
        simulator.allocate(proposal.slots, proposal.pool)
        measured = simulator.run()
    return [int(count) for count in proposal.slots[0]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", default="", help="run the cases whose names have this in them")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"--only {options.only!r} chooses none of {'; '.join(case.name for case in CASES)}")
    python = PYTHONS["peers"]
    if not python.exists():
        print("the rivals' environment is missing; run `make peers`", file=sys.stderr)
        return 2
    out = subprocess.run(
        [python, "-m", "benchmarks.autotune_tensorflow"],
        input=json.dumps([asdict(case) for case in cases]),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    document = json.loads(out.stdout)
    rows = [compare(case, found) for case, found in zip(cases, document["results"], strict=True)]
    show(rows, document["tensorflow"])
    write(options.json, {"tensorflow": document["tensorflow"], "cases": rows})
    return 0


def compare(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """A case's row: TensorFlow's choice, and ours."""
    return {
        **asdict(case),
        "self_time": found["self_time"],
        "tensorflow": found["parallelism"],
        "gaps": found["gaps"],
        "search": searched(case, found),
        "agent": decided(case, found["self_time"]),
        "nominal": decided(case, case.seconds),
    }


def difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The largest of any stage."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def show(rows: Sequence[dict[str, Any]], version: str) -> None:
    """The table, and how often both agree."""
    made = Table(
        title=f"Parallelism that AUTOTUNE settles on (TensorFlow {version})", title_justify="left", box=None
    )
    for heading in ("pipeline", "ms measured", "TensorFlow", "our search", "our agent", "with nominal costs"):
        made.add_column(heading)
    for row in rows:
        times = "/".join(f"{seconds * 1e3:.1f}" for seconds in row["self_time"])
        chosen = ["/".join(map(str, row[key])) for key in ("tensorflow", "search", "agent", "nominal")]
        made.add_row(row["name"], times, *chosen)
    console = Console(width=130)
    console.print(made)
    texts = {"search": "our search", "agent": "our agent", "nominal": "our agent with nominal costs"}
    for key, text in texts.items():
        off = [difference(row[key], row["tensorflow"]) for row in rows]
        same, near = sum(d == 0 for d in off), sum(d <= 1 for d in off)
        console.print(
            f"{text}: {same} of {len(rows)} the same, {near} within one worker, {max(off)} apart at most"
        )


if __name__ == "__main__":
    sys.exit(main())
