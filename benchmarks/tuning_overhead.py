"""What tuning costs where there is nothing to gain: ``python -m benchmarks.tuning_overhead --json FILE``.

Two figures. The control thread's own processor seconds, read from its clock, while it tunes a job. And the rate of a
job that cannot be improved, whose trainer is the bottleneck, with tuning on and off by turns in one process, so that
both see the same machine; the order within a pair alternates.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks import data, environment, report, stats
from benchmarks.context import Bar
from benchmarks.data import DataSpec
from benchmarks.stats import Estimate
from benchmarks.transform import transform
from intune import tune
from intune.pipelines import Pipeline

SPEC = DataSpec(rows=2_097_152, files=8, row_group_rows=16_384, dense=4, ids=8)
STEP_S = 0.02
"""Of the trainer, a batch: data are there ten times as fast."""
CLOCK_OF_THREAD = 2
"""``CPUCLOCK_SCHED`` of Linux (include/linux/posix-timers.h): precise processor time."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What tuning costs.

    Attributes:
        json: Where to write the results.
        seconds: Of each run.
        pairs: Runs with tuning on and off.
        agents: Whose control thread is timed; the first also in the pairs.
        compute: Let the trainer compute, on one processor, where it otherwise waits as for a GPU.
    """

    json: Path | None = None
    seconds: float = 10.0
    pairs: int = 5
    agents: tuple[str, ...] = ("dqn", "planner", "autotune")
    compute: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1 or not self.seconds > 0 or not self.agents:
            raise SystemExit("`--pairs` and `--seconds` must be above 0, and `--agents` name one")


def main(options: Options) -> int:
    console = Console()
    files = [str(path.resolve()) for path in data.ensure(SPEC)]
    step = _compute if options.compute else time.sleep
    document: dict[str, Any] = {
        "environment": environment.describe(),
        "seconds": options.seconds,
        "thread": {},
    }
    job(files, None, 1.0, step)  # warm up
    for agent in options.agents:
        found = document["thread"][agent] = job(files, agent, 2 * options.seconds, step)
        console.print(
            f"{agent}: control thread {found['thread_cpu_s']:.3f} s of {found['seconds']:.0f} s "
            f"({found['share']:.2%} of a processor), {found['rounds']} decisions",
            highlight=False,
        )
    on: list[float] = []
    off: list[float] = []
    for pair in range(options.pairs):
        for tuned in (True, False) if pair % 2 == 0 else (False, True):
            found = job(files, options.agents[0] if tuned else None, options.seconds, step)
            (on if tuned else off).append(found["rate"])
        console.print(f"pair {pair + 1}: on {on[-1]:,.0f}, off {off[-1]:,.0f} rows/s", highlight=False)
    document.update({"on": on, "off": off})
    found_bars = bars(document)
    document["bars"] = [bar.as_dict() for bar in found_bars]
    report.write(options.json, document)
    console.print(report.bars_table(found_bars))
    return 0


def job(
    files: Sequence[str], agent: str | None, seconds: float, step: Callable[[float], object]
) -> dict[str, Any]:
    """One run from a cold start."""
    pipeline = Pipeline.from_parquet(list(files)).batch(8192).map(transform, rowwise=True).to("cpu")
    rows = 0
    spent = 0.0
    began = time.perf_counter()
    with tune(pipeline, agent=agent, executor="threads", knowledge=False) as loader:
        while time.perf_counter() - began < seconds:
            for batch in loader:
                rows += len(batch["label"])
                step(STEP_S)
                if time.perf_counter() - began >= seconds:
                    break
        took = time.perf_counter() - began
        thread = getattr(getattr(loader, "_thread", None), "_thread", None)
        if thread is not None and thread.is_alive():
            spent = thread_cpu_s(thread.native_id)
        rounds = 0 if loader.controller is None else loader.controller.rounds
    return {
        "rate": rows / took,
        "seconds": took,
        "thread_cpu_s": spent,
        "share": spent / took,
        "rounds": rounds,
    }


def thread_cpu_s(native_id: int) -> float:
    """Processor seconds of a thread of this process so far.

    After ``clock_getcpuclockid``: a thread's clock is ``~id << 3`` with a bit for threads (4) and the clock's kind.
    """
    return time.clock_gettime((~native_id << 3) | 4 | CLOCK_OF_THREAD)


def bars(document: Mapping[str, Any]) -> list[Bar]:
    """At most a hundredth of a processor, and of the rate."""
    found = []
    for agent, run in document["thread"].items():
        share = 100 * float(run["share"])
        found.append(
            Bar(
                name=f"control thread, {agent}",
                limit=1.0,
                unit=" % of a processor",
                measured=None if math.isnan(share) else Estimate(share, share, share),
                at_least=False,
            )
        )
    if document.get("on"):
        ratio = stats.ratio(document["on"], document["off"])
        found.append(Bar(name="job that cannot be improved: on / off", limit=0.99, unit="×", measured=ratio))
    return found


def _compute(seconds: float) -> None:
    """Keep a processor busy in Python's own thread, as a trainer on CPU does between its kernels."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        os.getpid()


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.tuning_overhead")))
