"""What is made of the figures: intervals, pairs, bars. That models learn is tested with the models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.models.seeds import STUDENT, half_width
from benchmarks.models.unified import (
    DEMONSTRATION,
    Result,
    bars,
    collision_free_parameters,
    contenders,
    joined,
    read,
    rows,
    shrunk,
)
from intune.workloads.clicks.job import ClickJob, ready
from intune.workloads.clicks.tables import TableChoice
from intune.workloads.data.synthetic import SyntheticConfig, write_synthetic


def result(
    name: str, *aucs: float, best: float | None = None, every: int = 100, seeds: tuple[int, ...] = ()
) -> Result:
    return Result(
        name=name,
        seeds=seeds or tuple(range(len(aucs))),
        aucs=aucs,
        best_auc=best,
        parameters=50,
        all_parameters=every,
        rows_per_s=(1.0,) * len(aucs),
        seconds=1.0,
    )


def test_intervals_are_students() -> None:
    values = [0.71, 0.74, 0.72, 0.79]
    found = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert half_width(values) == pytest.approx((found[1] - found[0]) / 2, rel=1e-3)
    for count, point in STUDENT.items():
        assert point == pytest.approx(stats.t.ppf(0.975, count - 1), abs=5e-4)
    assert half_width([0.7]) is None


def test_differences_are_taken_seed_by_seed() -> None:
    results = [
        result("unified", 0.80, 0.70, every=58),
        result("unified, smaller", 0.79, 0.69, every=56),
        result("collision-free", 0.805, 0.705),
        result("hashed, width 4", 0.60, 0.50),
        result("hashed, width 8", 0.79, 0.69),
    ]
    best, near, smaller = bars("movielens", results)
    assert best.claim == "unified ≥ hashed, width 8, at equal parameters"
    assert best.difference == pytest.approx(0.01)
    assert best.half_width == pytest.approx(0, abs=1e-9)
    assert best.holds
    assert near.difference == pytest.approx(-0.005)
    assert near.holds
    assert "58.0% of the model's" in near.claim
    assert smaller.difference == pytest.approx(-0.015)
    assert not smaller.holds


def test_models_are_compared_with_the_teacher_of_their_data() -> None:
    good, bad = bars("teacher", [result("dlrm", 0.797, best=0.801), result("dcnv2", 0.795, best=0.801)])
    assert good.holds
    assert not bad.holds
    assert bad.difference == pytest.approx(-0.006)
    with pytest.raises(ValueError, match="no teacher"):
        bars("teacher", [result("dlrm", 0.7)])


def test_on_criteo_a_quarter_must_lose_little_and_beat_hashing() -> None:
    names = ("collision-free", "unified 1/4", "hashed 1/4", "unified 1/16", "hashed 1/16")
    aucs = (0.800, 0.799, 0.797, 0.780, 0.790)
    found = bars("criteo", [result(name, auc) for name, auc in zip(names, aucs, strict=True)])
    assert [bar.holds for bar in found] == [True, True, False]
    assert all(bar.half_width is None for bar in found)


def test_parts_have_equal_parameters() -> None:
    made = shrunk(1600, (4, 16))
    assert [contender.name for contender in made] == [
        "unified 1/4",
        "hashed 1/4",
        "unified 1/16",
        "hashed 1/16",
    ]
    assert [contender.settings["embedding"].parameters for contender in made] == [400, 400, 100, 100]


def test_every_contender_is_a_job_and_hashing_has_the_demonstrations_parameters(tmp_path: Path) -> None:
    write_synthetic(SyntheticConfig(rows=300, test_rows=100, scale=1e-4), tmp_path / "criteo")
    for data in ("movielens", "criteo", "teacher"):
        for contender in contenders(data, str(tmp_path / "criteo")):
            ClickJob(data="somewhere", **contender.settings)
    hashed = [c for c in contenders("movielens", "") if c.name.startswith("hashed")]
    assert {c.settings["embedding"] for c in hashed} == {TableChoice(parameters=DEMONSTRATION)}


def test_collision_free_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    write_synthetic(SyntheticConfig(rows=300, test_rows=100, scale=1e-4), tmp_path / "criteo")
    counted = collision_free_parameters(str(tmp_path / "criteo"))
    job = ClickJob(data=str(tmp_path / "criteo"), embedding=TableChoice(kind="full"), batch_size=100)
    with ready(job) as made:
        assert made.config.embedding_parameters == counted


def test_runs_are_joined_by_seed() -> None:
    parts = [result("a", 0.7, 0.8), result("b", 0.6), result("a", 0.9, seeds=(2,))]
    first, second = joined(parts)
    assert (first.name, first.seeds, first.aucs, first.seconds) == ("a", (0, 1, 2), (0.7, 0.8, 0.9), 2.0)
    assert second == parts[1]
    with pytest.raises(ValueError, match="seeds in common"):
        joined([parts[0], parts[0]])


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = [result("a", 0.7, 0.8, best=0.81)]
    (tmp_path / "a.json").write_text(json.dumps({"results": rows(results)}))
    assert read(tmp_path / "a.json") == results


def test_seeds_that_only_one_has_do_not_count() -> None:
    left = result("dlrm", 0.7, best=0.8)
    assert bars("teacher", [left])[0].difference == pytest.approx(-0.1)
    unified, full = result("unified 1/4", 0.8, 0.1, seeds=(0, 5)), result("collision-free", 0.8, 0.9)
    assert bars("criteo", [unified, full])[0].difference == pytest.approx(0)
    with pytest.raises(ValueError, match="no seed in common"):
        bars("criteo", [result("unified 1/4", 0.8, seeds=(7,)), full])


def test_a_row_has_the_mean_and_its_interval() -> None:
    (row,) = rows([result("a", 0.7, 0.8)])
    assert row["auc"] == pytest.approx(0.75)
    assert row["half_width"] == pytest.approx(12.706 * 0.05)
