"""Calibration: known jobs are found again from noisy measurements, and predict allocations they were not fitted to."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from intune.envs import calibrate_memory, calibrate_model, least_squares
from intune.envs.calibrate import calibrate, twin_of
from intune.envs.calibrate_model import predict
from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.probe import ProbeSettings, probe, steady_rate
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.pipelines import Allocation, Budget, Pipeline
from intune.pipelines.errors import ConfigError
from tests.envs.generated import rate_of

NAMES = ("load", "shuffle", "batch", "transform")
SLOTS = np.array(
    [
        [1, 1, 1, 1],
        [2, 1, 1, 1],
        [4, 1, 1, 2],
        [8, 1, 1, 2],
        [8, 2, 1, 4],
        [4, 2, 2, 6],
        [2, 2, 1, 4],
        [16, 1, 1, 3],
        [1, 1, 1, 1],
        [4, 4, 4, 4],
    ],
    dtype=np.float64,
)
POOL = np.array([0.0] * 8 + [1.0, 4.0])


def a_job(**changes: Any) -> Jobs:
    values: dict[str, Any] = {
        "cpu": [[0.3e-6, 0.15e-6, 0.01e-6, 0.5e-6]],
        "wait": [[2e-6, 0.0, 0.0, 0.1e-6]],
        "contention": [[0.02, 0.0, 0.0, 0.2]],
        "slot_bytes": [[40e6, 60e6, 5e6, 30e6]],
        "row_bytes": 264.0,
        "block_rows": 65_536.0,
        "base_bytes": 5e8,
        "memory": 8e9,
        "step": 2e-7,
        "cpus": 4.0,
    }
    return Jobs.of(stages=4, **{**values, **changes})


def noisy(job: Jobs, slots: Floats, pool: Floats, seed: int, share: float = 0.02) -> Measurement:
    """What would be measured once settled, each number off by some percent."""
    exact = predict(job, slots, pool)
    draw = np.random.default_rng(seed)

    def off(values: Floats, by: float) -> Floats:
        return np.asarray(values * np.exp(draw.normal(0.0, by, values.shape)))

    return replace(
        exact,
        delivered=off(exact.delivered, share),
        busy=off(exact.busy, 2 * share),
        cpu=off(exact.cpu, 2 * share),
        memory_used=off(exact.memory_used, share),
        memory_base=np.full(len(pool), job.base_bytes[0]),
    )


def test_known_parameters_are_found_again_within_what_the_fit_says_of_itself() -> None:
    job = a_job()
    found = calibrate(noisy(job, SLOTS, POOL, seed=0), NAMES, block_rows=[65_536] * 4)
    for name, at, within in (
        ("cpu", 0, 0.06),
        ("cpu", 1, 0.06),
        ("cpu", 3, 0.06),
        ("wait", 0, 0.06),
        ("contention", 3, 0.35),  # a knee and crowding explain some of the same
    ):
        true, got = getattr(job, name)[0, at], getattr(found.jobs, name)[0, at]
        assert got == pytest.approx(true, rel=within), name
        assert abs(math.log(got / true)) < 4 * found.uncertainty[f"{NAMES[at]}.{name}"]
    # Limits that all stages share are left out where they do not bind.
    assert np.isinf(found.jobs.storage_rate[0])
    assert np.isinf(found.jobs.memory_bandwidth[0])
    assert found.jobs.step[0] == pytest.approx(2e-7, rel=0.01)
    assert found.jobs.base_bytes[0] == pytest.approx(5e8, rel=0.06)
    assert found.jobs.slot_bytes[0, 0] == pytest.approx(40e6, rel=0.3)
    # What these allocations cannot show is said to be uncertain.
    assert found.uncertainty["batch.contention"] > 1.0
    assert found.misfit < 1.5
    assert found.rate_error < 0.03


def test_limits_that_all_stages_share_are_found_where_they_bind() -> None:
    storage = a_job(storage_requests=[[1 / 65_536, 0, 0, 0]], storage_rate=1e6 / 65_536, step=1e-9)
    found = calibrate(noisy(storage, SLOTS, POOL, seed=1), NAMES, block_rows=[65_536] * 4).jobs
    assert found.storage_rate[0] * 65_536 == pytest.approx(1e6, rel=0.1)
    # Four processors that do the work of two and a half.
    cpu = a_job().cpu
    weak = a_job(traffic=cpu * 1e10, memory_bandwidth=2.5e10, wait=0.0, contention=0.0, step=1e-9)
    found = calibrate(noisy(weak, SLOTS, POOL, seed=2), NAMES, block_rows=[65_536] * 4).jobs
    assert np.isfinite(found.memory_bandwidth[0])
    best = rate_of(found.with_(slots_per_cpu=np.array([100.0])), [[8, 4, 2, 8]])[0]
    assert best == pytest.approx(2.5 / cpu.sum(), rel=0.08)


def test_crowding_and_switching_are_found_where_they_matter() -> None:
    dear = a_job(crowding=[[0.0, 0.0, 0.0, 0.6]], contention=0.0, wait=1e-9, cpus=2.0, step=1e-9)
    found = calibrate(noisy(dear, SLOTS, POOL, seed=3), NAMES, block_rows=[65_536] * 4).jobs
    assert found.crowding[0, 3] == pytest.approx(0.6, rel=0.25)
    assert found.crowding[0, 2] < 0.1
    switched = a_job(switching=0.15, contention=0.0, wait=1e-9, cpus=2.0, step=1e-9)
    found = calibrate(noisy(switched, SLOTS, POOL, seed=3), NAMES, block_rows=[65_536] * 4).jobs
    assert found.switching[0] == pytest.approx(0.15, rel=0.3)
    assert predict(found, SLOTS, POOL).delivered == pytest.approx(
        predict(switched, SLOTS, POOL).delivered, rel=0.1
    )


@settings(max_examples=2)
@given(seed=st.integers(0, 10_000))
def test_a_fitted_twin_predicts_allocations_it_never_saw(seed: int) -> None:
    """Property: over random jobs (waits, contention, trainers), the rate of held-out allocations is right."""
    draw = np.random.default_rng(seed)
    job = a_job(
        cpu=np.exp(draw.normal(np.log([[0.3e-6, 0.15e-6, 0.01e-6, 0.5e-6]]), 0.5)),
        wait=np.exp(draw.normal(np.log([[1e-6, 1e-9, 1e-9, 2e-8]]), 1.0)),
        contention=draw.uniform(0.0, 0.25, (1, 4)),
        step=float(np.exp(draw.uniform(np.log(5e-8), np.log(1e-6)))),
        cpus=float(draw.integers(2, 9)),
    )
    found = calibrate(noisy(job, SLOTS, POOL, seed=seed), NAMES, block_rows=[65_536] * 4)
    held_out = np.rint(np.exp(draw.uniform(0.0, np.log(8.0), (40, 4))))
    pool = np.where(np.arange(40) % 5 == 0, draw.integers(2, 7, 40), 0).astype(np.float64)
    true, guess = predict(job, held_out, pool), found.predict(held_out, pool)
    error = np.abs(guess.delivered / true.delivered - 1.0)
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.9) < 0.2
    memory = np.abs(guess.memory_used / true.memory_used - 1.0)
    assert np.median(memory) < 0.15


def test_a_twin_is_made_of_the_latest_intervals_of_a_running_job() -> None:
    """History with several intervals of each allocation, unsound ones among them; the new part counts."""
    history: list[Measurement] = []
    for job in (a_job(cpu=2e-6), a_job()):
        for slots in (SLOTS[0], SLOTS[2], SLOTS[4], SLOTS[7]):
            simulator = Simulator(job, steps=1)
            simulator.allocate(slots[None])
            history += [simulator.run() for _ in range(6)]
            history.append(replace(history[-1], delivered=np.array([math.nan])))
    twin = twin_of(history, stages=NAMES)
    test = np.array([[3.0, 1.0, 1.0, 3.0], [6.0, 2.0, 1.0, 2.0]])
    got = predict(twin, test, np.zeros(2)).delivered
    assert_allclose(got, predict(a_job(), test, np.zeros(2)).delivered, rtol=0.1)


def test_a_twin_is_quick_enough_to_make_between_two_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 50 ms on a quiet machine, see benchmarks/envs.py: a few calls of the physics of few jobs each."""
    history = [noisy(a_job(), SLOTS[i : i + 1], POOL[i : i + 1], seed=i) for i in range(8)]
    sizes: list[int] = []
    at_rest = calibrate_model.at_rest

    def counted(jobs: Jobs, *rest: Any) -> Any:
        sizes.append(len(jobs))
        return at_rest(jobs, *rest)

    monkeypatch.setattr(calibrate_model, "at_rest", counted)
    twin_of(history)
    assert len(sizes) <= 15
    assert sum(sizes) <= 2_000


def test_nothing_usable_and_wrong_names_are_errors() -> None:
    measured = noisy(a_job(), SLOTS, POOL, seed=0)
    with pytest.raises(ConfigError, match="`stages` has 1 names"):
        calibrate(measured, ["load"])
    with pytest.raises(ConfigError, match="`block_rows`"):
        calibrate(measured, NAMES, block_rows=[0, 1, 1, 1])
    dead = replace(measured, delivered=np.zeros(len(measured)))
    with pytest.raises(ConfigError, match="no interval"):
        calibrate(dead, NAMES)
    with pytest.raises(ConfigError, match="`measured` is empty"):
        calibrate([], NAMES)
    with pytest.raises(ConfigError, match="no interval"):
        twin_of([dead.take(slice(0, 1))])


def test_predictions_are_of_rows_of_slots_however_they_are_written() -> None:
    found = calibrate(noisy(a_job(), SLOTS, POOL, seed=0), NAMES, iterations=2, starts=1)
    listed = found.predict([[2, 1, 1, 3], [0, 0, 0, 0]], [0, 4])
    np.testing.assert_array_equal(
        listed.delivered,
        found.predict(np.array([[2.0, 1, 1, 3], [0, 0, 0, 0]]), np.array([0.0, 4])).delivered,
    )
    for slots, pool in (([2, 1, 1, 3], [0]), ([[2, 1, 1, 3]], 0), ([[2, 1, 1, 3]], [0, 0])):
        with pytest.raises(ConfigError, match="`slots` has shape"):
            found.predict(slots, pool)


def test_a_calibration_is_a_scenario_that_can_be_saved_and_drawn_from(tmp_path: Path) -> None:
    found = calibrate(noisy(a_job(), SLOTS, POOL, seed=0), NAMES, iterations=2, starts=1)
    path = tmp_path / "mine.toml"
    found.scenario("mine", "A test.").save(path)
    loaded = Scenario.load(path)
    drawn = loaded.draw(np.random.default_rng(0), 2)
    assert_allclose(drawn.cpu, np.repeat(found.jobs.cpu, 2, axis=0))
    assert loaded.spec.uncertainty["load.cpu"] == pytest.approx(found.uncertainty["load.cpu"])
    varied = loaded.uncertain().draw(np.random.default_rng(0), 64)
    assert varied.cpu[:, 0].std() > 0


# ---- the parts -----------------------------------------------------------------------------------------------


def test_least_squares_agrees_with_the_closed_form_and_shrugs_at_an_outlier() -> None:
    x = np.linspace(0.0, 1.0, 30)
    y = 2.0 + 3.0 * x + np.random.default_rng(0).normal(0.0, 0.1, 30)
    wide = np.full(2, 1e6)

    def residuals(values: Floats, target: Floats = y) -> Floats:
        return np.asarray((values[:, :1] + values[:, 1:] * x - target) / 0.1)

    def run(target: Floats) -> least_squares.Fitted:
        return least_squares.fit(
            lambda values: residuals(values, target),
            np.zeros(2),
            prior=np.zeros(2),
            prior_deviation=wide,
            low=-wide,
            high=wide,
            tolerance=1e-9,
        )

    found = run(y)
    design = np.column_stack([np.ones(30), x])
    wanted, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert_allclose(found.values, wanted, atol=0.02)
    assert_allclose(found.deviation, 0.1 * np.sqrt(np.diag(np.linalg.inv(design.T @ design))), rtol=0.3)
    spoiled = y.copy()
    spoiled[7] += 50.0
    assert_allclose(run(spoiled).values, wanted, atol=0.2)


def test_non_negative_least_squares_is_what_scipys_is() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(1)
    for _ in range(8):
        matrix, target = draw.normal(size=(8, 4)), draw.normal(size=8)
        wanted, _ = optimize.nnls(matrix, target)
        found = least_squares.non_negative(matrix, target, start=np.zeros(4), rounds=5000)
        assert_allclose(found, wanted, atol=1e-6)


def test_memory_of_known_working_sets_is_fitted() -> None:
    job = a_job(wait=0.0, step=5e-6)
    measured = noisy(job, SLOTS[:8], POOL[:8], seed=3, share=0.002)
    found = calibrate_memory.fit(measured, predict(job, SLOTS[:8], POOL[:8]))
    assert found.base_bytes == pytest.approx(5e8, rel=0.04)
    assert found.slot_bytes[0] == pytest.approx(40e6, rel=0.1)
    assert found.noise < 0.02


def test_a_pipeline_that_tells_of_no_memory_holds_none() -> None:
    job = a_job(base_bytes=0.0, slot_bytes=0.0)
    measured = replace(noisy(job, SLOTS, POOL, seed=3), memory_used=np.zeros(len(POOL)))
    twin = calibrate(measured, NAMES, iterations=2, starts=1).jobs
    twin.check()
    assert twin.base_bytes[0] + twin.slot_bytes.sum() < 1e3


def test_slots_that_hold_far_more_than_their_blocks_are_found() -> None:
    """A model of 2 GB in each slot of one stage, of which no block says anything; a pool's peak is that stage's."""
    job = a_job(slot_bytes=[[40e6, 60e6, 5e6, 2e9]], memory=1e12)
    measured = noisy(job, SLOTS, POOL, seed=3, share=0.01)
    found = calibrate_memory.fit(measured, predict(job, SLOTS, POOL))
    assert found.slot_bytes[3] == pytest.approx(2e9, rel=0.05)
    assert found.slot_bytes[:3].max() < 2e8
    assert found.noise < 0.05


def test_what_becomes_resident_after_the_base_was_read_is_put_down_to_no_stage() -> None:
    """Libraries that are loaded by the first task: the base is twice what was seen before there were slots."""
    job = a_job()
    late = noisy(job, SLOTS, POOL, seed=3, share=0.01)
    late = replace(late, memory_base=np.full(len(POOL), 2.5e8))
    found = calibrate_memory.fit(late, predict(job, SLOTS, POOL))
    assert found.base_bytes == pytest.approx(5e8, rel=0.1)
    assert found.slot_bytes.max() < 1.5e8


def test_a_rate_is_that_of_a_line_through_all_arrivals_not_of_the_last_burst() -> None:
    """Blocks of eight batches every 0.1 s, looked at for any time: 80 batches/s, whichever burst comes last."""
    for bursts in (7, 8, 9):
        arrivals = [(0.1 * burst + 1e-4 * batch, 1) for burst in range(bursts) for batch in range(8)]
        assert steady_rate(arrivals) == pytest.approx(80.0, rel=0.12)
    assert steady_rate(arrivals[:2]) == 0.0
    assert steady_rate([(1.0, 5)] * 3) == 0.0


def test_a_real_pipeline_is_probed_and_fitted(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": np.arange(200_000), "y": np.ones(200_000, np.float32)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5_000)
    pipeline = Pipeline.from_parquet([str(tmp_path / "a.parquet")] * 4).batch(1_000).map(lambda block: block)
    told: list[float] = []
    with pipeline.loader(executor="threads", budget=Budget(cpus=2, memory=1 << 28)) as loader:
        allocations = [
            Allocation.per_stage({"load": 1, "batch": 1, "transform": 1}),
            Allocation.per_stage({"load": 2, "batch": 1, "transform": 2}),
            Allocation.shared(2),
        ]
        found = probe(
            loader,
            allocations,
            ProbeSettings(seconds=0.5, settle=0.05, step=0.004),
            progress=lambda rows, share: told.append(share),
        )
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [float(each.pool[0]) for each in found.measured] == [0.0, 0.0, 2.0]
    assert found.measured[1].slots[0].tolist() == [2.0, 1.0, 2.0]
    assert found.block_rows[0] > 5_000 - 1
    assert all(each.sound()[0] for each in found.measured)
    # The trainer sleeps 4 ms for every 1,000 rows: no more than 250,000 rows/s, whatever the slots.
    fitted = calibrate(found.measured, loader.stages, block_rows=found.block_rows)
    assert fitted.jobs.step[0] > 3.9e-6
    for settings_ in ({"seconds": 0.0}, {"settle": -1.0}, {"step": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(settings_))):
            ProbeSettings(**settings_)
