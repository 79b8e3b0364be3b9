from __future__ import annotations

import json

import numpy as np
import pytest

from intune.agents.outcomes import Trace
from intune.agents.summary import estimate, ratio, summarise


def draws(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=2000).astype(float)


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = estimate(values, draws(400))
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_nan_is_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    assert estimate(values, draws(4)).mean == 2.0
    assert np.isnan(estimate(np.full(4, np.nan), draws(4)).mean)


def test_a_ratio_between_the_same_jobs_is_surer_than_between_any() -> None:
    base = np.random.default_rng(2).lognormal(0, 1.0, 300)
    found = ratio(base * 2.0, base, draws(300))
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def traces(count: int = 50) -> dict[str, Trace]:
    rng = np.random.default_rng(3)
    made = {}
    for name, level in (("autotune", 0.4), ("ours", 0.8)):
        rate = np.clip(rng.normal(level, 0.02, (count, 12)), 0, 1).astype(np.float32)
        ones = np.ones_like(rate)
        none = np.zeros_like(rate, dtype=bool)
        made[name] = Trace(rate, ones, ones * level, ones, ones, none, none, np.ones(count, dtype=bool))
    return made


def test_summaries_are_of_all_agents_with_ratios_to_the_reference() -> None:
    theirs, ours = summarise(traces(), reference="autotune")
    assert theirs.ratio is None
    assert ours.ratio is not None
    assert ours.ratio["whole"].mean == pytest.approx(2.0, rel=0.02)
    assert ours.ratio["bytes"].mean == pytest.approx(2.0, rel=1e-6)
    assert ours.median_reached == np.inf
    np.testing.assert_allclose(ours.curve, 0.8, atol=0.02)
    assert (ours.low <= ours.curve).all()
    assert (ours.curve <= ours.high).all()
    assert ours.regret[-1] == pytest.approx(12 * 0.2, rel=0.05)


def test_the_same_seed_gives_the_same_intervals() -> None:
    first, second = (summarise(traces(), reference="autotune", seed=4)[1].outcomes["whole"] for _ in range(2))
    assert first == second


def test_a_summary_is_valid_json() -> None:
    text = json.dumps([summary.as_dict() for summary in summarise(traces())], allow_nan=False)
    assert json.loads(text)[1]["median_reached"] is None


def test_jobs_without_a_best_are_left_out_also_where_all_are() -> None:
    made = traces()
    for trace in made.values():
        trace.rate[:10, :6] = np.nan  # nothing fits at first, in ten jobs
        trace.weight[:10, :6] = 0.0
        trace.rate[:, 3] = np.nan  # in none of them
        trace.weight[:, 3] = 0.0
    _, ours = summarise(made, reference="autotune")
    shown = np.delete(ours.curve, 3)
    assert np.isnan([ours.curve[3], ours.low[3], ours.high[3]]).all()
    np.testing.assert_allclose(shown, 0.8, atol=0.02)
    assert (np.delete(ours.low, 3) <= shown).all()
    assert ours.outcomes["whole"].mean == pytest.approx(0.8, abs=0.02)
    json.dumps(ours.as_dict(), allow_nan=False)
    for trace in made.values():
        trace.rate[:] = np.nan
        trace.weight[:] = 0.0
    _, none = summarise(made, reference="autotune")
    assert none.ratio is not None
    assert np.isnan([none.ratio["whole"].mean, none.outcomes["whole"].mean, *none.curve, *none.regret]).all()


def test_there_is_no_ratio_to_nothing() -> None:
    """A reference that delivered nothing has no multiple; one that did in some jobs only has one."""
    ones, nothing = np.ones(20), np.zeros(20)
    assert np.isnan(ratio(ones, nothing, draws(20)).mean)
    found = ratio(ones, np.where(np.arange(20) < 2, 1.0, 0.0), draws(20))
    assert found.mean == pytest.approx(10.0)
    assert found.high <= 20.0
    one_sided = ratio(np.array([2.0, np.nan]), np.array([1.0, 5.0]), draws(2))
    assert one_sided.mean == 2.0
