"""The benchmark of trend forecasts, small: equal budgets, next items learnt once a seed, bars as measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import trends
from benchmarks.models.__main__ import CLAIMS, DATA
from benchmarks.models.trends import METRICS, Bench, Contender, Result, bars, contenders, difference, main
from intune.workloads.data.market import MarketOptions, write_market
from intune.workloads.training.fitting import FitOptions
from intune.workloads.trends.data import find_trend_data

LOSS = FitOptions(metric="loss", higher_is_better=False, epochs=1)
TINY = replace(trends.FITTING, items=LOSS, trends=LOSS)
SHARED = {"width": 4, "hidden": 4, "length": 8, "season": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("market") / "m"
    write_market(MarketOptions(users=30, items=24, audiences=3, steps=20, season=4, volume=8.0), out)
    return out


def result(name: str, *gains: float) -> Result:
    steps = {metric: np.array(gains) for metric in METRICS}
    return Result(name=name, settings={}, tried=(), metrics={}, steps=steps)


def test_nobody_may_try_more_than_two_settings() -> None:
    trained = [each for each in contenders() if each.random]
    assert {len(each.candidates) for each in trained} == {2}
    assert all(len(each.candidates) <= 2 for each in contenders())


def test_next_items_are_learnt_once_a_seed(folder: Path) -> None:
    bench = Bench(find_trend_data(folder), SHARED, TINY)
    alone, _ = bench.trained({"forecaster": "gru4rec"}, 0)
    other, epochs = bench.trained({"forecaster": "trendrec", "tune_items": False}, 0)
    assert epochs == 1
    assert (alone.model.items.weight == other.model.items.weight).all()
    again, _ = bench.trained({"forecaster": "gru4rec"}, 1)
    assert (alone.model.items.weight != again.model.items.weight).any()


def test_the_better_candidate_on_validation_is_judged(folder: Path) -> None:
    bench = Bench(find_trend_data(folder), SHARED, TINY)
    weights = ({"weight": 0.1}, {"weight": 0.9})
    one = Contender(
        name="average",
        candidates=tuple({"forecaster": "exponential-average", **each} for each in weights),
    )
    measured = bench.measure(one, range(3))
    assert measured.settings == one.candidates[int(np.argmax(measured.tried))]
    assert len(measured.metrics["gain@10"]) == 1
    assert measured.steps["gain@10"].shape == (4,)


def test_what_is_known_beforehand_is_above_the_rules(folder: Path) -> None:
    bench = Bench(find_trend_data(folder), SHARED, TINY)
    rule = bench.measure(Contender(name="m", candidates=({"forecaster": "markov"},)), range(1))
    assert bench.reachable().metrics["gain@10"][0] > rule.metrics["gain@10"][0] + 0.2


def test_bars_compare_step_by_step() -> None:
    found = bars(
        [result("all known", 9, 9, 9), result("A", 0.1, 0.2, np.nan), result("TrendRec", 0.2, 0.4, 0.5)]
    )
    assert len(found) == len(METRICS)
    assert found[0].value == pytest.approx(0.15)
    assert (found[0].low, found[0].high) == pytest.approx((0.1, 0.2))
    assert found[0].holds
    assert found[0].significant
    equal = bars([result("A", 1, 1), result("TrendRec", 1, 1)])
    assert not any(bar.holds for bar in equal)


def test_the_interval_of_a_difference_is_that_of_its_mean() -> None:
    gaps = np.random.default_rng(0).normal(0.3, 1.0, 400)
    value, low, high = difference(gaps, np.zeros(400))
    assert value == pytest.approx(gaps.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * gaps.std() / 20, rel=0.15)


def test_figures_are_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trends.json"
    main("market", folder=str(folder), out=out, seeds=1, only=("Markov", "last velocity"))
    figures = json.loads(out.read_text())
    assert [row["name"] for row in figures["results"]] == ["all known", "Markov", "last velocity"]
    assert figures["bars"] == []
    assert "Markov" in capsys.readouterr().out
    assert all(CLAIMS[name].data in DATA for name in ("trends-market", "trends-movielens"))
