"""The tables of `benchmarks.agents`: what must hold beside what was found. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

OURS, RIVAL = "dqn+guard", "planner+guard"


def tables(document: dict[str, Any]) -> Iterator[Table]:
    """One for each part there is, the summary first."""
    parts = {name: part["found"] for name, part in document["parts"].items()}
    summary = goals(parts)
    if summary.row_count:
        yield summary
    if "families" in parts:
        yield by_family(parts["families"])
    if "paper" in parts:
        yield paper(parts["paper"])
    for name in ("ablation", "seeds"):
        if name in parts:
            yield means(parts[name], name)


def goals(parts: dict[str, Any]) -> Table:
    """What must hold, the aim, and what was found; parts that were not run are left out."""
    table = _table("what must hold", ("figure", "must", "aim", "found"))
    if "families" in parts:
        found = parts["families"]
        ten = {family: _of(each, OURS, "at_10") for family, each in found.items()}
        worst = min(ten, key=lambda family: ten[family])
        rival = np.mean([_of(each, RIVAL, "whole") for each in found.values()])
        whole = np.mean([_of(each, OURS, "whole") for each in found.values()])
        recovery = np.nanmean([_of(each, OURS, "recovery") for each in found.values()])
        table.add_row(
            "share of the best rate at decision 10", "0.90", "0.97", f"{np.mean(list(ten.values())):.3f}"
        )
        five = np.mean([_of(each, OURS, "at_5") for each in found.values()])
        table.add_row("the same at decision 5", "0.85", "0.95", f"{five:.3f}")
        table.add_row(f"worst family ({worst})", "0.80", "0.92", f"{ten[worst]:.3f}")
        table.add_row("decisions to 0.9 after a resize", "5", "2", f"{recovery:.1f}")
        table.add_row("against planner+guard, whole job", "1.00×", "1.05×", f"{whole / rival:.3f}×")
    if "kills" in parts:
        each = parts["kills"].values()
        told = f"{sum(one['killed'] for one in each)} of {sum(one['jobs'] for one in each):,}"
        table.add_row("jobs out of memory under the guard", "0 of 10,000", "0 of 100,000", told)
    if "paper" in parts:
        ours = parts["paper"][OURS]
        table.add_row("rate against autotune, family paper", "2.29×", "3×", _times(ours["ratio"]["whole"]))
        table.add_row("the same against autotune-pool", "–", "–", _times(ours["ratio_to_pool"]["whole"]))
        table.add_row("memory against autotune", "0.7×", "0.5×", _times(ours["ratio"]["bytes"]))
    if "unseen" in parts and "skipped" not in parts["unseen"]:
        ten = {family: each["outcomes"]["at_10"]["mean"] for family, each in parts["unseen"].items()}
        seconds = max(each["seconds"] for each in parts["unseen"].values())
        mean = f"{np.mean(list(ten.values())):.3f} (worst {min(ten.values()):.3f}; {seconds:.0f} s each)"
        table.add_row("families never trained on", "0.85", "0.93", mean)
    if "seeds" in parts:
        each = parts["seeds"].values()
        scores = [one["at_10"] for one in each]
        told = f"{min(scores):.3f} to {max(scores):.3f} over {len(scores)} seeds"
        table.add_row("at decision 10 by training seed", "–", "–", told)
        seconds = max(one["training_seconds"] or 0.0 for one in each)
        table.add_row("pre-training", "30 min", "10 min", f"{seconds / 60:.1f} min")
    return table


def by_family(found: dict[str, Any]) -> Table:
    """Share of the best rate after ten decisions (jobs out of memory)."""
    agents = list(next(iter(found.values())))
    names = list(found)
    table = _table("share of the best rate at decision 10, and jobs out of memory", ("agent", *names, "mean"))
    for agent in agents:
        cells = [
            f"{_of(each, agent, 'at_10'):.2f}"
            + (f" ({each[agent]['killed_jobs']})" if each[agent]["killed_jobs"] else "")
            for each in found.values()
        ]
        mean = np.mean([_of(each, agent, "at_10") for each in found.values()])
        table.add_row(agent, *cells, f"{mean:.3f}")
    return table


def paper(found: dict[str, Any]) -> Table:
    """Whole jobs of the paper's family, beside what the paper reports."""
    columns = (
        "agent",
        "of the best",
        "/ autotune",
        "paper",
        "memory / autotune",
        "out of memory",
        "recovery",
    )
    table = _table("family paper, whole jobs with resizes and restarts", columns)
    said = {OURS: "2.29×, no OOM", "autotune": "1×, 8 % OOM"}
    for name, each in sorted(found.items(), key=lambda item: -item[1]["outcomes"]["whole"]["mean"]):
        ratio = each["ratio"]
        table.add_row(
            name,
            f"{each['outcomes']['whole']['mean']:.3f}",
            "1.00×" if ratio is None else _times(ratio["whole"]),
            said.get(name, ""),
            "1.00×" if ratio is None else _times(ratio["bytes"]),
            f"{each['killed_jobs'] / max(each['feasible'], 1):.1%}",
            f"{each['outcomes']['recovery']['mean'] or float('nan'):.1f}",
        )
    return table


def means(found: dict[str, Any], title: str) -> Table:
    """Means over all families of variants."""
    table = _table(
        title, ("", "decision 5", "decision 10", "worst family", "whole job", "memory", "out of memory")
    )
    for name, each in found.items():
        table.add_row(
            name, f"{each['at_5']:.3f}", f"{each['at_10']:.3f}", f"{each['worst_at_10']:.3f}", f"{each['whole']:.3f}",
            f"{each['memory']:.0%}", f"{each['killed_jobs']} of {each['feasible']:,}",
        )  # fmt: skip
    return table


def _of(each: dict[str, Any], agent: str, name: str) -> float:
    value = each[agent]["outcomes"][name]["mean"]
    return float("nan") if value is None else float(value)


def _times(estimate: dict[str, Any]) -> str:
    return f"{estimate['mean']:.2f}× ({estimate['low']:.2f}–{estimate['high']:.2f})"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table
