"""Twins of pipelines in virtual time, and what the fidelity benchmark makes of its runs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fidelity, virtual
from benchmarks.fidelity import Options, middle_of, run_virtual
from benchmarks.fidelity_cases import CASES, allocations, light, lock_bound, memory_heavy
from benchmarks.fidelity_report import (
    bars,
    draw,
    held_out,
    noise,
    ordered_pairs,
    rank_correlation,
    rate_errors,
    summarise,
)
from intune.pipelines import Allocation


def test_a_choice_of_no_pipeline_is_refused() -> None:
    with pytest.raises(SystemExit, match="`--only` chooses none of "):
        Options(only=("nonsense",))


def alone(**slots: int) -> Allocation:
    names = ("load", "batch", "transform", "transfer")
    return Allocation.per_stage({name: slots.get(name, 1) for name in names})


def test_virtual_pipelines_are_as_fast_as_arithmetic_says() -> None:
    """Hand-worked: one slot for all; a slow stage; the trainer; the lock; the processors."""
    spec = virtual.VirtualSpec(cpu={"load": 2e-7, "transform": 3e-7})
    task = virtual.TASK_S * (1 / 65_536 + 3 / 32_768)  # what tasks cost beside their rows
    pool, _ = virtual.run(spec, Allocation.shared(1))
    assert pool.delivered[0] == pytest.approx(1 / (5e-7 + task), rel=0.03)
    slow, _ = virtual.run(virtual.VirtualSpec(wait={"load": 2e-6}), alone(load=3))
    assert slow.delivered[0] == pytest.approx(3 / 2e-6, rel=0.05)
    trainer, _ = virtual.run(virtual.VirtualSpec(cpu=spec.cpu, step=0.02), alone(load=2, transform=2))
    assert trainer.delivered[0] == pytest.approx(8192 / (0.02 + virtual.HAND_OVER_S), rel=0.01)
    assert trainer.waiting[0] < 0.01
    lock = virtual.VirtualSpec(cpu={"load": 1e-8, "transform": 1e-6}, lock=frozenset({"transform"}))
    assert virtual.run(lock, alone(transform=4))[0].delivered[0] == pytest.approx(1e6, rel=0.05)
    free = virtual.VirtualSpec(cpu=lock.cpu)
    assert virtual.run(free, alone(transform=4))[0].delivered[0] == pytest.approx(2 / 1.01e-6, rel=0.05)


@pytest.mark.parametrize(
    ("name", "median", "worst"),
    [("arithmetic", 0.03, 0.08), ("storage at 40 ms", 0.03, 0.1), ("trainer 12 ms a batch", 0.01, 0.02)],
)
def test_twins_of_pipelines_on_the_real_scheduler_predict_held_out_allocations(
    name: str, median: float, worst: float
) -> None:
    """No machine, no noise: what is off is the physics. The figures are about twice what was measured."""
    case = run_virtual(name, Options())
    errors = rate_errors(held_out(case))
    assert len(errors) == 7
    assert float(np.median(errors)) < median
    assert max(errors) < worst


def test_the_middle_of_visits_is_the_median_of_every_number() -> None:
    spec = virtual.SPECS["arithmetic"]
    visits = [virtual.run(spec, alone(), seed=seed, seconds=0.3)[0] for seed in range(3)]
    middle = middle_of(visits)
    assert middle.delivered[0] == sorted(float(each.delivered[0]) for each in visits)[1]
    assert middle.busy[0, 2] == sorted(float(each.busy[0, 2]) for each in visits)[1]
    assert not middle.killed[0]


def test_noise_is_how_far_one_visit_is_from_the_mean_of_the_others() -> None:
    """Hand-worked: two allocations, two visits; the order is right, then wrong."""
    runs = [
        {"held_out": True, "rates": [1.0, 2.0], "memories": [10.0, 10.0]},
        {"held_out": True, "rates": [2.0, 1.0], "memories": [10.0, 8.0]},
        {"held_out": False, "rates": [7.0, 9.0], "memories": [1.0, 9.0]},
    ]
    found = noise({"one": {"runs": runs}, "broken": {"error": "it broke"}})
    assert found.pairs == 2
    assert found.rank == -1.0
    # One visit over the other: 0.5, 2, 2, 0.5; so 0.5 or 1 off.
    assert found.rate_median == pytest.approx(0.75)
    # 1, 1.25, 1, 0.8: in order 0, 0, 0.2, 0.25.
    assert found.memory_p90 == pytest.approx(0.235)
    assert noise({"once": {"runs": [{"held_out": True, "rates": [1.0], "memories": [1.0]}]}}).pairs == 0


@pytest.mark.parametrize("most", [4, 16])
def test_allocations_to_predict_are_not_among_those_to_calibrate_on(most: int) -> None:
    stages = ("load", "shuffle", "batch", "transform", "transfer")
    known, unknown = allocations(most, stages, seed=3)
    assert len(set(known)) == len(known)
    assert len(set(unknown)) == len(unknown) == 7
    assert not set(known) & set(unknown)
    assert allocations(most, stages, seed=3) == (known, unknown)
    assert max(max(each.as_dict().values()) for each in unknown) <= most + 1


def test_there_are_pipelines_of_every_kind_on_both_executors() -> None:
    assert len(CASES) >= 12
    assert {case.kind for case in CASES.values()} == {"cpu", "lock", "memory", "wait", "storage", "trainer"}
    assert {case.delay_ms for case in CASES.values()} >= {5, 40, 150}
    assert {case.executor for case in CASES.values()} == {"threads", "ray"}
    assert {bool(case.shuffle) for case in CASES.values()} == {True, False}


def test_the_work_of_the_pipelines_is_really_done() -> None:
    columns = {"I1": np.array([0.0, 3.0], np.float32), "C1": np.array([1, 2])}
    assert light(columns)["I1"][1] == pytest.approx(math.log1p(3.0))
    assert lock_bound(columns)["I1"].tolist() == pytest.approx([0.0, math.log1p(3.0) * 0.5 + 3.0])
    assert memory_heavy(columns)["I1"][1] == pytest.approx(math.log1p(3.0))


def a_case(rates: list[float], predicted: list[float], memory: float = 1.0) -> dict[str, Any]:
    runs = [
        {
            "held_out": at > 0,
            "rate": rate,
            "predicted_rate": guess,
            "memory": 1e9,
            "predicted_memory": 1e9 * memory,
        }
        for at, (rate, guess) in enumerate(zip(rates, predicted, strict=True))
    ]
    return {"runs": runs, "base_bytes": 5e8, "case": {"kind": "cpu"}}


def test_bars_count_held_out_allocations_only_and_a_failure_as_wholly_wrong() -> None:
    good = a_case([9e9, 1e6, 2e6, 4e6], [1.0, 1.1e6, 2e6, 4e6], memory=1.1)
    found = {bar.name: bar for bar in bars({"good": good})}
    assert found["rate error, median"].measured == pytest.approx(0.0)
    assert found["rate error, 90th percentile"].measured == pytest.approx(0.08)
    assert found["rank correlation over allocations"].measured == 1.0
    assert found["memory error, 90th percentile"].measured == pytest.approx(0.1)
    assert all(bar.passed for bar in found.values())
    failed = {bar.name: bar for bar in bars({"good": good, "bad": {"error": "no"}})}
    assert not failed["rate error, 90th percentile"].passed
    assert summarise({"bad": {"error": "no"}}) == {"bad": {"error": "no"}}
    assert not any(bar.passed for bar in bars({}))


def test_pairs_of_equal_rates_have_no_order_and_equal_predictions_are_half_right() -> None:
    assert ordered_pairs([1.0, 1.02, 2.0], [5.0, 1.0, 7.0]) == (2.0, 2)
    assert ordered_pairs([1.0, 2.0], [3.0, 3.0]) == (0.0, 1)
    assert ordered_pairs([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == (-3.0, 3)


def test_rank_correlation_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    draw_ = np.random.default_rng(0)
    for _ in range(10):
        one = draw_.integers(0, 5, 9).tolist()
        other = draw_.integers(0, 5, 9).tolist()
        assert rank_correlation(one, other) == pytest.approx(scipy.spearmanr(one, other).statistic)


def test_a_picture_is_drawn_also_where_a_pipeline_failed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = {
        "environment": {"cores_usable": 2, "cpu": "a CPU", "date": "2026-01-01"},
        "cases": {"good": a_case([1e6, 1e6, 2e6], [1e6, 1e6, 2.5e6]), "bad": {"error": "no"}},
    }
    draw(document, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_without_moto_it_says_so_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity.s3_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs moto: pip install 'intune"):
        fidelity.main(Options(only=("S3 at 5 ms",)))
