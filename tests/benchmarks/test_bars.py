"""Bars, computed from runs made up for the purpose, and the tables that show them."""

import io
from typing import Any

from rich.console import Console

from benchmarks import local, overhead, planning, report, resizing
from benchmarks.context import Bar
from benchmarks.stats import Estimate


def runs(rate: float, *, peak: int = 100, first: float = 0.1) -> list[dict[str, Any]]:
    return [
        {"rows": rate * slow, "seconds": slow, "batches": 10, "peak_bytes": peak, "first_batch_s": first}
        for slow in (1.0, 1.5, 2.0)
    ]


RESULT: dict[str, Any] = {
    "rows": 1000,
    "batch": 10,
    "sweeps": {"SPDL threads": [{"config": {"fused": 2}, "rates": [1.0, 2.0], "rate": 1.5, "error": None}]},
    "missing": ["tf.data"],
    "failures": {"Ray Data": "killed"},
    "runs": {
        "ours, threads": runs(2.4e6, peak=90, first=0.2),
        "ours, threads, shuffled": runs(1.2e6),
        "ours, Ray": runs(1.5e6, first=2.0),
        "SPDL threads": runs(2.0e6),
        "PyTorch DataLoader": runs(2.1e6),
        "PyTorch DataLoader, processes": runs(1.0e6),
        "bare 2-thread loop": runs(2.5e6),
    },
}


def test_each_bar_is_judged_by_its_paired_median() -> None:
    verdicts = {
        bar.name: (bar.measured and round(bar.measured.median, 3), bar.passed) for bar in local.bars(RESULT)
    }
    assert verdicts == {
        "ours, threads / SPDL threads": (1.2, True),
        "ours, threads / PyTorch DataLoader": (1.143, False),
        "ours, threads / tf.data": (None, None),
        "ours, threads / bare 2-thread loop": (0.96, False),
        "ours, Ray / Ray Data": (None, None),
        "ours, Ray / PyTorch DataLoader, processes": (1.5, True),
        "ours, Ray / ours, threads": (0.625, True),
        "ours, threads, shuffled / ours, threads": (0.5, False),
        "ours, threads: first batch": (0.2, True),
        "ours, Ray: first batch": (2.0, False),
        "peak memory, ours, threads / PyTorch DataLoader": (0.9, True),
    }


def test_the_best_of_all_settings_stands_in_where_it_uses_processes_itself() -> None:
    kept = {name: found for name, found in RESULT["runs"].items() if not name.endswith("processes")}
    names = [bar.name for bar in local.bars({**RESULT, "runs": kept})]
    assert "ours, Ray / PyTorch DataLoader" in names


def test_the_best_rival_is_neither_ours_nor_a_limit() -> None:
    assert local.best_rival(RESULT["runs"]) == "PyTorch DataLoader"
    assert local.best_rival({}) is None


def test_overhead_is_what_ours_costs_beyond_the_bare_loop_for_the_rows_of_a_batch() -> None:
    mine = [{"rows": 1000, "own_cpu_s": 0.002, "seconds": 0.003}] * 3
    bare = [{"rows": 500, "own_cpu_s": 0.0005, "seconds": 0.001}] * 3
    case = {"batch": 100, "runs": {"ours": mine, "bare loop": bare}}
    (bar,) = overhead.bars({"empty transform": case})
    assert bar.measured is not None
    assert round(bar.measured.median, 6) == 100.0  # 200 µs for a hundred rows against 100
    assert bar.passed is False
    (bar,) = overhead.bars({"empty transform": {"batch": 100, "runs": {"ours": mine}}})
    assert bar.passed is None


def test_planning_is_judged_by_the_fresh_process() -> None:
    (bar,) = planning.bars({"runs": [{"first_s": 1.0}, {"first_s": 1.9}, {"first_s": 3.0}], "failures": {}})
    assert bar.passed is True
    assert planning.bars({"runs": [], "failures": {"planning": "failed"}})[0].passed is None


def test_a_person_sees_every_contender_failure_and_verdict() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    local.show(RESULT, console)
    console.print(report.bars_table(local.bars(RESULT)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in [
        *RESULT["runs"],
        "Ray Data failed",
        "killed",
        "make peers",
        '{"fused": 2}',
        "2.40M",
        "FAIL",
        "pass",
    ]:
        assert text in shown
    assert shown.count("not measured") == 2


def test_a_bar_may_be_a_least_or_a_most() -> None:
    exact = Estimate(2.0, 1.0, 3.0)
    assert Bar(name="a", limit=2.0, unit="", measured=exact).passed
    assert Bar(name="a", limit=2.0, unit="", measured=exact, at_least=False).passed
    assert not Bar(name="a", limit=1.9, unit="", measured=exact, at_least=False).passed


def test_resizing_is_judged_by_pairs_of_epochs() -> None:
    result = {"runs": {"threads": [[1.0, 1.02], [1.0, 1.0]], "ray": [[1.0, 2.0]]}, "failures": {}}
    threads, ray = resizing.bars(result)
    assert threads.passed is True
    assert ray.passed is False
