"""Agents on test jobs, and the table of what must hold: ``python -m benchmarks.agents --json FILE``.

Every part runs on its own (``--only PART``) and is written as it ends, so that a run that was cut off goes on where it
stopped. Jobs are of the test split; agents meet the same jobs with the same chance. Parts: `families` (shares of the
best rate, kills), `paper` (rates against AUTOTUNE with resizes and restarts), `kills` (jobs out of memory in many
jobs), `ablation` (what each idea brought), `unseen` (families never trained on), `seeds` (trained anew).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from benchmarks import report
from benchmarks.agents_variants import ABLATIONS, maker
from benchmarks.environment import describe
from intune.agents.evaluate import Trial, evaluate
from intune.agents.outcomes import Trace, outcomes
from intune.agents.pretrain import Recipe, pretrain
from intune.agents.qweights import load
from intune.agents.summary import summarise
from intune.envs.scenario import Scenario
from intune.envs.source import JobSource

OURS, RIVAL = "dqn+guard", "planner+guard"
OTHERS = (
    RIVAL, "dqn", "planner", "ds2+guard", "autotune", "autotune-pool", "autotune-adaptive", "heuristic-adaptive",
    "shared", "even", "static",
)  # fmt: skip
PAPER = (OURS, RIVAL, "dqn-paper", "autotune", "autotune-adaptive", "autotune-pool", "heuristic-adaptive", "even",
         "shared", "static")  # fmt: skip
UNSEEN = Recipe(episodes=16, jobs=100, gradient_steps=6)
"""Small, since it is trained for every group: a seventh of the gradient steps of the weights shipped."""
GROUPS = 5
"""Of families that are left out together."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Agents on simulated test jobs, beside what must hold.

    Attributes:
        only: one part: paper, families, ablation, kills, unseen or seeds; all of them if it is not given.
        json: results; parts that it holds already (of the same settings) are not run again.
        plot: picture of the families' shares (needs matplotlib, and the part `families`).
        jobs: of each family, in `families`, `paper`, `ablation`, `unseen` and `seeds`.
        kill_jobs: of all families together, in `kills`.
        seed: of the test jobs.
        weights: files of the `dqn` trained with other seeds, for `seeds`.
        train: train the networks that `seeds` and `unseen` need where no weights are given.
        again: run parts anew that the file holds.
    """

    only: str | None = None
    json: Path | None = None
    plot: Path | None = None
    jobs: int = 96
    kill_jobs: int = 10_000
    seed: int = 0
    weights: tuple[Path, ...] = ()
    train: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.kill_jobs < 1:
            raise SystemExit(f"`--jobs` ({self.jobs}) and `--kill-jobs` ({self.kill_jobs}) must be above 0")
        report.check_plot(self.plot)


def families(settings: Settings) -> dict[str, Any]:
    """All agents on every family: shares of the best rate after 5 and 10 decisions, kills, recovery, memory."""
    return {
        family: _summaries((OURS, *OTHERS), family, settings.jobs, 64, settings.seed)
        for family in Scenario.names()
    }


def paper(settings: Settings) -> dict[str, Any]:
    """Whole jobs of the paper's family with resizes and restarts, ratios to both kinds of AUTOTUNE."""
    source = JobSource(Scenario.load("paper"), split="test", seed=settings.seed)
    trial = Trial(jobs=settings.jobs, steps=128, chunk=256)
    traces = evaluate({name: maker(name) for name in PAPER}, source, trial)
    found = _told(traces, "autotune", settings.seed)
    for name, each in _told(traces, "autotune-pool", settings.seed).items():
        found[name]["ratio_to_pool"] = each["ratio"]
    return found


def kills(settings: Settings) -> dict[str, Any]:
    """Jobs out of memory under the guard, of those for which a feasible allocation exists."""
    names = Scenario.names()
    each = -(-settings.kill_jobs // len(names))
    found: dict[str, Any] = {}
    for family in names:
        source = JobSource(Scenario.load(family), split="test", seed=settings.seed + 1)
        traces = evaluate({OURS: maker(OURS)}, source, Trial(jobs=each, steps=32))
        for name, trace in traces.items():
            killed = outcomes(trace).killed
            found[family] = {
                "agent": name,
                "jobs": int(trace.feasible.sum()),
                "killed": int(np.nansum(killed)),
            }
    return found


def ablation(settings: Settings) -> dict[str, Any]:
    """The `dqn` under the guard without one of its parts, on all families."""
    names = Scenario.names()
    return {
        variant: _mean(
            [_summaries((variant,), family, settings.jobs, 32, settings.seed)[variant] for family in names]
        )
        for variant in ABLATIONS
    }


def unseen(settings: Settings) -> dict[str, Any]:
    """Two families at a time are left out of training, with a shortened recipe, and judged."""
    names = Scenario.names()
    found: dict[str, Any] = {}
    for left_out in (names[i::GROUPS] for i in range(GROUPS)):
        if not settings.train:
            return {"skipped": f"give --train to train {GROUPS} networks (about two minutes)"}
        weights = pretrain(replace(UNSEEN, families=tuple(name for name in names if name not in left_out)))
        for family in left_out:
            trained = {OURS: maker(OURS, weights=weights)}
            found[family] = _summaries(trained, family, settings.jobs, 32, settings.seed)[OURS]
            found[family]["seconds"] = weights.recipe["seconds"]
            found[family]["left_out"] = list(left_out)
    return found


def seeds(settings: Settings) -> dict[str, Any]:
    """The `dqn` trained with several seeds: files given, or trained now."""
    made: dict[str, Any] = {"shipped": load()} | {path.stem: load(path) for path in settings.weights}
    if settings.train:
        made |= {f"seed {seed}": pretrain(Recipe(seed=seed)) for seed in (2, 3)}
    found: dict[str, Any] = {}
    for name, weights in made.items():
        each = {
            family: _summaries({name: maker("dqn+guard", weights=weights)}, family, settings.jobs, 32,
                               settings.seed)[name]
            for family in Scenario.names()
        }  # fmt: skip
        found[name] = _mean(list(each.values())) | {
            "seed": weights.recipe.get("seed"), "training_seconds": weights.recipe.get("seconds"),
            "score": weights.recipe.get("score"),
        }  # fmt: skip
    return found


PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "paper": paper, "families": families, "ablation": ablation, "kills": kills, "unseen": unseen, "seeds": seeds,
}  # fmt: skip


def _summaries(agents: Any, family: str, jobs: int, steps: int, seed: int) -> dict[str, Any]:
    """By agent, what `Summary` says, without the curves."""
    source = JobSource(Scenario.load(family), split="test", seed=seed)
    makers = agents if isinstance(agents, dict) else {name: maker(name) for name in agents}
    return _told(evaluate(makers, source, Trial(jobs=jobs, steps=steps, chunk=256)), "autotune", seed)


def _told(traces: dict[str, Trace], reference: str, seed: int) -> dict[str, Any]:
    kept = ("jobs", "feasible", "killed_jobs", "median_reached", "ratio", "outcomes")
    found = {}
    for summary in summarise(traces, reference=reference, seed=seed):
        told = summary.as_dict()
        found[summary.agent] = {name: told[name] for name in kept}
    return found


def _mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over families of the figures that matter, and the worst."""

    def of(name: str) -> list[float]:
        return [part["outcomes"][name]["mean"] for part in parts]

    return {
        "at_5": float(np.mean(of("at_5"))), "at_10": float(np.mean(of("at_10"))), "worst_at_10": min(of("at_10")),
        "whole": float(np.mean(of("whole"))), "memory": float(np.mean(of("memory"))),
        "killed_jobs": sum(part["killed_jobs"] for part in parts), "feasible": sum(part["feasible"] for part in parts),
    }  # fmt: skip


def main(settings: Settings) -> None:
    if settings.only is not None and settings.only not in PARTS:
        raise SystemExit(f"`only`={settings.only!r} must be one of {', '.join(PARTS)}")
    asked = {"jobs": settings.jobs, "kill_jobs": settings.kill_jobs, "seed": settings.seed}
    document: dict[str, Any] = {"settings": asked, "parts": {}}
    if settings.json is not None and settings.json.exists():
        before = json.loads(settings.json.read_text())
        document = before if before.get("settings") == asked else document
    for name in [settings.only] if settings.only else PARTS:
        done = document["parts"].get(name)
        if done is not None and "skipped" not in done["found"] and not settings.again:
            continue
        began = time.monotonic()
        found = PARTS[name](settings)
        document["parts"][name] = {"found": found, "seconds": round(time.monotonic() - began, 1)}
        document["environment"] = describe()
        report.write(settings.json, document)
    show(document)
    if settings.plot is not None and "families" in document["parts"]:
        draw(document, settings.plot)


def show(document: dict[str, Any]) -> None:
    from benchmarks.agents_tables import tables

    console = Console(width=170)
    for table in tables(document):
        console.print(table)
    for name, part in document["parts"].items():
        if "skipped" in part["found"]:
            console.print(f"{name} not run: {part['found']['skipped']}", highlight=False)


def draw(document: dict[str, Any], path: Path) -> None:
    """Shares of the best rate after ten decisions, by agent and family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = document["parts"]["families"]["found"]
    shown = (OURS, RIVAL, "ds2+guard", "heuristic-adaptive", "autotune", "shared", "even", "static")
    figure, axis = pyplot.subplots(figsize=(9, 0.5 * len(found) + 1.6), layout="constrained")
    for place, name in enumerate(reversed(shown)):
        values = [each[name]["outcomes"]["at_10"]["mean"] for each in found.values()]
        colour = "#c1440e" if name == OURS else f"{0.25 + 0.07 * place:.2f}"
        axis.scatter(values, list(found), label=name, color=colour, s=46 if name == OURS else 24, zorder=3)
    axis.set_xlabel("share of the best rate after ten decisions")
    axis.set_xlim(0, 1.05)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="python -m benchmarks.agents"))
