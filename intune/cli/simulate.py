"""`intune simulate`: compare agents on simulated jobs. What is computed is in `intune.agents`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intune.cli.defaults import otherwise

if TYPE_CHECKING:
    from intune.simulation.results import Results

SIMULATE_HELP = """\
Compare agents on simulated jobs that none of them was trained on.

Every agent runs the same jobs of every scenario with the same chance, measurements and budget, with and without the
guard that keeps it within memory. The table gives shares of the best allocation that there is, with 95 % intervals
over jobs; --json has every figure, --html a page with charts, --plots pictures. Ctrl-C ends it with the tables of the
scenarios that were done, and writes no files.

Examples:
  intune simulate --agents autotune ds2 planner --scenarios paper memory-tight
  intune simulate --agents planner+guard autotune oracle --guard as-named --jobs 2000 --html report.html
  intune simulate --agents even bottleneck --scenarios my-cluster.toml --json figures.json --plots pictures
"""

DEFAULT_AGENTS = (
    "static", "shared", "even", "proportional", "heuristic-adaptive", "bottleneck", "thresholds", "autotune",
    "autotune-adaptive", "autotune-pool", "ds2", "dqn-paper", "planner", "dqn",
)  # fmt: skip


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after some of the scenarios, which `results` are of."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results


def simulate(
    *,
    agents: tuple[str, ...] = DEFAULT_AGENTS,
    scenarios: tuple[str, ...] = ("paper",),
    jobs: int = 256,
    steps: int = 96,
    seed: int = 0,
    split: Literal["train", "validation", "test"] = "test",
    guard: Literal["both", "with", "without", "as-named"] = "both",
    reference: str = "autotune",
    restart_seconds: float = 60.0,
    json: Annotated[Path | None, otherwise("none is written", metavar="PATH")] = None,
    html: Annotated[Path | None, otherwise("none is written", metavar="PATH")] = None,
    plots: Annotated[Path | None, otherwise("none are made", metavar="PATH")] = None,
    quiet: bool = False,
) -> None:
    """Compare agents.

    Args:
        agents: Their names; with +guard at its end an agent runs under the guard.
        scenarios: Built-in families of jobs, or files.
        jobs: Of each scenario.
        steps: Decisions in a job's life.
        seed: Of the jobs and of the intervals.
        split: Agents were trained on jobs of train; figures should be of test.
        guard: Run every agent both with and without the guard, only one of these, or as named.
        reference: Agent that the others are divided by, if it is among them; where it runs only under the guard, that.
        restart_seconds: How long a job stands still that ran out of memory.
        json: Write all figures there.
        html: Write a page with tables and charts there.
        plots: Write a picture of each scenario into this folder.
        quiet: Show no progress.
    """
    from intune.agents.registry import summary
    from intune.cli.writing import check_file, check_folder, check_pictures

    check_file("json", json)
    check_file("html", html)
    check_folder("plots", plots)
    check_pictures("plots", plots)
    names = guarded_names(agents, guard)
    summary(reference)
    reference = compared_with(reference, names)
    try:
        with _progress(names, scenarios, jobs, quiet=quiet) as told:
            results = run(
                names, scenarios, jobs=jobs, steps=steps, seed=seed, split=split, reference=reference,
                restart_seconds=restart_seconds, told=told,
            )  # fmt: skip
    except Interrupted as stop:
        _show(stop.results)
        raise
    # Files first: whoever reads the tables may leave after the first (`| head`).
    lost = write(results, json=json, html=html, plots=plots)
    _show(results)
    if lost is not None:  # what took long to compute is shown nevertheless
        raise lost


def _show(results: Results) -> None:
    """Print the table of every scenario."""
    from intune.display import JobConsole
    from intune.simulation.table import needed, table

    console = JobConsole()
    for scenario in results.scenarios:
        made = table(results, scenario, width=console.width if console.is_terminal else None)
        if not console.is_terminal:
            console.width = needed(made)
        console.print(made)
        console.print()


def guarded_names(agents: tuple[str, ...], guard: str) -> tuple[str, ...]:
    """The agents to run. An oracle needs no guard.

    Raises:
        ConfigError: no agent, or one that there is not.
    """
    from intune.agents.registry import GUARDED, summary
    from intune.pipelines.errors import ConfigError

    if not agents:
        raise ConfigError("`agents` is empty; name at least one")
    chosen: list[str] = []
    for name in agents:
        summary(name)
        plain = name.removesuffix(GUARDED)
        forms = {
            "both": [plain, plain + GUARDED],
            "with": [plain + GUARDED],
            "without": [plain],
            "as-named": [name],
        }[guard]
        chosen += [plain] if plain == "oracle" else forms
    return tuple(dict.fromkeys(chosen))


def compared_with(reference: str, names: tuple[str, ...]) -> str:
    """The agent to divide by: `reference`, or where only that is among the `names` to run, it under the guard."""
    from intune.agents.registry import GUARDED

    return reference + GUARDED if reference not in names and reference + GUARDED in names else reference


def run(
    names: tuple[str, ...],
    scenarios: tuple[str, ...],
    *,
    jobs: int,
    steps: int,
    seed: int,
    split: Literal["train", "validation", "test"],
    reference: str,
    restart_seconds: float = 60.0,
    told: Callable[[str, str, int], None] | None = None,
) -> Results:
    """Run the agents on all scenarios.

    Args:
        names, scenarios, jobs, steps, seed, split, reference, restart_seconds: see `simulate`.
        told: is called with scenario, agent and how many jobs more that has run.

    Raises:
        ConfigError: an agent or scenario that there is not, or a number out of range.
        Interrupted: by Ctrl-C, where a scenario was done by then.
    """
    from intune.agents import registry
    from intune.agents.evaluate import Trial, evaluate
    from intune.agents.summary import summarise
    from intune.envs.scenario import Scenario
    from intune.envs.source import JobSource
    from intune.pipelines.errors import ConfigError
    from intune.simulation.results import Results

    if not scenarios:
        raise ConfigError("`scenarios` is empty; name at least one")
    trial = Trial(jobs=jobs, steps=steps, restart_seconds=restart_seconds)
    loaded = {name: Scenario.load(name) for name in scenarios}
    started = time.monotonic()
    settings: dict[str, Any] = {
        "agents": list(names), "jobs": jobs, "steps": steps, "seed": seed, "split": split, "reference": reference,
        "restart_seconds": restart_seconds,
    }  # fmt: skip
    descriptions = {name: scenario.description for name, scenario in loaded.items()}
    results = Results(settings=settings, seconds=0.0, scenarios={}, descriptions=descriptions, interval={})
    try:
        for name, scenario in loaded.items():
            source = JobSource(scenario, split=split, seed=seed)

            def watch(agent: str, done: int, scenario: str = name) -> None:
                if told is not None:
                    told(scenario, agent, done)

            traces = evaluate(
                {agent: partial(registry.make, agent) for agent in names}, source, trial, watch=watch
            )
            results.interval[name] = float(source.jobs([0]).interval[0])
            results.scenarios[name] = summarise(traces, reference=reference, seed=seed)
    except KeyboardInterrupt:
        if not results.scenarios:
            raise
        raise Interrupted(results) from None
    return replace(results, seconds=time.monotonic() - started)


def write(results: Results, *, json: Path | None, html: Path | None, plots: Path | None) -> OSError | None:
    """Write what was asked for and say so; the error of a file that could not be written, which it names."""
    from intune.cli.writing import write_all
    from intune.simulation.page import page
    from intune.simulation.pictures import draw

    def write_page(path: Path) -> None:
        path.write_text(page(results), encoding="utf-8")

    written, lost = write_all((json, results.save), (html, write_page), (plots, partial(draw, results)))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return lost


def _progress(
    names: tuple[str, ...], scenarios: tuple[str, ...], jobs: int, *, quiet: bool
) -> AbstractContextManager[Callable[[str, str, int], None] | None]:
    if quiet:
        return nullcontext(None)
    from intune.simulation.progress import JobProgress

    return JobProgress(jobs * len(names) * len(scenarios))
